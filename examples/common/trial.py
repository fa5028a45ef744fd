"""A flow on a table: trained, tested, and shown as a row of a table."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

import flowplug as fp
from common.densities import Density, log_likelihoods, size
from common.report import finite, markdown, shown
from common.tables import Table
from common.training import Options, Training, nll, rows_of, watched

ROWS = 2000  # to start from, and to validate on, at most
SAMPLES = 1000  # whose time is measured
FAILURES = (fp.NonFiniteError, fp.NotConverged, AssertionError)  # nflows asserts that its splines have roots


def trial(
    name: str, density: Density, data: Table, options: Options, *, offset: float = 0.0
) -> tuple[dict[str, Any], Tensor]:
    """Maximises the likelihood, and tests what is best on validation rows: `outcome`, the name and the steps a second.

    Args:
        name: Of the flow.
        density: The flow, on the device of the data.
        data: The table.
        options: How it is trained, and for how long.
        offset: Nats to take off each test log-likelihood, where the table is of other units than are shown.

    Raises:
        FloatingPointError: A loss, or every validation log-likelihood, is not finite.
    """
    density.start(data.train[:ROWS])
    evaluate = partial(mean_log_likelihood, density, data.val[:ROWS])
    training = fit(density, rows_of(data.train), options, name, evaluate)
    training.restore()
    judged, samples = outcome(density, log_likelihoods(density, data.test) - offset, data.test[:SAMPLES], SAMPLES)
    speed = {"steps_per_second": training.step / training.elapsed}
    if options.compile:
        speed |= {"compile_seconds": training.compiling}
    return {"model": name, **speed, **judged}, samples


def fit(
    density: Density,
    sample: Callable[[int], Tensor],
    options: Options,
    name: str = "training",
    evaluate: Callable[[], float] | None = None,
) -> Training:
    """Maximum likelihood to the end, under a progress bar; a flow that is compiled has started from data before."""
    loss = nll(density, compile=options.compile)
    training = Training(density, loss, sample, options, after_step=density.after_step, evaluate=evaluate)
    for _ in watched(training, name):
        pass
    return training


def mean_log_likelihood(density: Density, x: Tensor) -> float:
    """In nats, in eval mode."""
    return float(log_likelihoods(density, x).mean())


def outcome(density: Density, values: Tensor, x: Tensor, count: int) -> tuple[dict[str, Any], Tensor]:
    """What a trained flow is judged by, None where it is not finite, samples are not, or a layer fails.

    Args:
        density: The flow; it is in eval mode afterwards.
        values: Test log-likelihoods ``(rows,)`` in nats.
        x: Rows that are sent to latent and back.
        count: How many samples are drawn and timed.

    Returns:
        By name: mean log-likelihood and two standard errors, parameters, ms of sampling and the largest error of the
        round trip. And the samples ``(count, features)`` on the CPU, none where a layer fails.
    """
    density.eval()
    samples, milliseconds, error = x[:0].cpu(), math.nan, math.nan
    with suppress(*FAILURES), torch.no_grad(), fp.no_logdet():
        error = float((density.round_trip(x) - x).abs().max())
        start = time.perf_counter()
        samples = density.sample(count).cpu()
        if samples.isfinite().all():
            milliseconds = 1000 * (time.perf_counter() - start)
    judged = {
        "test_log_likelihood": float(values.mean()),
        "two_standard_errors": 2 * float(values.std()) / math.sqrt(len(values)),
        "parameters": size(density),
        "sampling_ms": milliseconds,
        "round_trip_error": error,
    }
    return {key: finite(value) for key, value in judged.items()}, samples


def table(lines: Iterable[dict[str, Any]]) -> str:
    """Outcomes of `trial` as a Markdown table."""
    columns = ["model", "test log-likelihood (nats) +- 2 s.e.", "parameters", "steps/s"]
    forms = {"parameters": ",", "steps_per_second": ".0f", "sampling_ms": ".0f", "round_trip_error": ".0e"}
    rows = []
    for line in lines:
        level, spread = shown(line["test_log_likelihood"], ".2f"), shown(line["two_standard_errors"], ".2f")
        rows.append([line["model"], f"{level} +- {spread}", *(shown(line[key], form) for key, form in forms.items())])
    return markdown([*columns, f"{SAMPLES} samples, ms", "round trip"], rows)
