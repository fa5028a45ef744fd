"""What the study writes: the results, a table of them, what flowplug's transforms gain, and a picture of that."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean

import torch
from nflows.transforms.base import InverseNotAvailable
from torch import Tensor

import flowplug as fp
from common.densities import size
from common.gains import GAIN, draw_summary
from common.paired import estimate, written
from common.report import finite, markdown, shown
from common.rows import Rows
from common.runs import Line
from common.study import Study, by_model, is_chosen
from common.trial import FAILURES
from posteriors.models import PLAIN, Posterior
from posteriors.tasks import Problem, part_of_sbi


def judged(posterior: Posterior, problem: Problem, values: Tensor) -> Line:
    """What a trained estimator is judged by, None where it is not finite or no draws are.

    Args:
        posterior: The estimator; it is in eval mode afterwards.
        problem: What it is judged on.
        values: Its log-densities ``(rows,)`` in nats of the pairs of the problem.
    """
    posterior.eval()
    start = time.process_time()
    drawn = draws(posterior, problem.x[0], problem.posteriors.shape[1])
    milliseconds = 1000 * (time.process_time() - start) if drawn is not None else math.nan
    scores = [
        c2st(draws(posterior, x, len(exact)), exact) for x, exact in zip(problem.x, problem.posteriors, strict=False)
    ]
    return {
        "test_log_q": finite(float(values.mean())),
        "two_standard_errors": finite(2 * float(values.std()) / math.sqrt(len(values))),
        "c2st": scores,
        "parameters": size(posterior),
        "sampling_ms": finite(milliseconds),
    }


def draws(posterior: Posterior, x: Tensor, count: int) -> Tensor | None:
    """Draws ``(count, features)`` for one observation, None where a layer fails or they are not finite."""
    with suppress(*FAILURES, InverseNotAvailable), torch.no_grad(), fp.no_logdet():
        found = posterior.sample(x, count).cpu()
        return found if found.isfinite().all() else None
    return None


def c2st(found: Tensor | None, exact: Tensor) -> float | None:
    """The part of draws that sbi's random forest tells from exact ones, in folds that it has not seen."""
    return None if found is None else float(part_of_sbi("utils.metrics").c2st(exact, found))


def table(lines: Sequence[Line]) -> str:
    """The results as a Markdown table, a row for each run."""
    columns = [
        "task", "model", "seed", "test log q (nats) ± 2 s.e.", "C2ST", "parameters", "steps", "seconds", "steps/s",
        "samples, ms",
    ]  # fmt: skip
    rows = [[line["config"][key] for key in ("data", "model", "seed")] + cells(line) for line in lines]
    return markdown(columns, rows)


def cells(line: Line) -> list[str]:
    """The measured columns of one row."""
    if "failed" in line:
        return [line["failed"], *[""] * 6]
    level, spread = (shown(line[key], ".3f") for key in ("test_log_q", "two_standard_errors"))
    scores = line["c2st"]
    score = "" if not scores else "-" if None in scores else format(mean(scores), ".3f")
    forms = {"parameters": ",", "steps": "", "seconds": ".1f", "steps_per_second": ".1f", "sampling_ms": ".0f"}
    return [f"{level} ± {spread}", score, *(shown(line[key], form) for key, form in forms.items())]


def summary(lines: Sequence[Line], out: Path) -> str:
    """Means over seeds as a Markdown table, and what flowplug's transforms gain: differences on the same pairs.

    In bold the mixture with each of sbi's estimators that is best on held-out simulations: the one to judge by. Last
    the seconds until it is as good there as the plain estimator gets: the mean of the runs that are, and how many.
    """
    columns = [
        "task", "model", "seeds", "validation", "test log q (nats) ± 2 s.e.", GAIN, "of each seed",
        "C2ST ± 2 s.e.", "less plain ± 2 s.e.", "steps", "seconds", "to plain's best, s",
    ]  # fmt: skip
    done = by_model(lines)
    validation = {key: mean(line["validation"] for line in runs.values()) for key, runs in done.items() if runs}
    measured, rows = Rows(out), list[list[object]]()
    for (data, model), runs in done.items():
        name = PLAIN.get(model, "")
        chosen = is_chosen((data, model), validation, PLAIN)
        plain = {seed: line for seed, line in done.get((data, name), {}).items() if seed in runs}
        own = list(runs.values())
        gain = list(filter(None, (measured(runs[seed], line) for seed, line in plain.items())))
        scores = {seed: torch.tensor(line["c2st"]) for seed, line in runs.items() if scored(line)}
        others = {seed: torch.tensor(line["c2st"]) for seed, line in plain.items() if scored(line)}
        caught = [caught_up(runs[seed], line["validation"]) for seed, line in plain.items()]
        rows.append([
            data,
            f"**{model}**" if chosen else model,
            " ".join(map(str, runs)),
            format(validation[data, model], ".3f") if runs else "",
            written(list(filter(None, map(measured, own)))),
            written(gain, "+"),
            " ".join(f"{value.mean:+.2f}" for value in gain),
            estimate(list(scores.values())),
            estimate([score - others[seed] for seed, score in scores.items() if seed in others], "+"),
            round(mean(line["steps"] for line in own)) if own else "",
            format(mean(line["seconds"] for line in own), ".1f") if own else "",
            reaching(caught),
        ])  # fmt: skip
    measured.write()
    return markdown(columns, rows)


def scored(line: Line) -> bool:
    """Whether there is a C2ST of several observations, all of them."""
    return len(line["c2st"]) > 1 and None not in line["c2st"]


def caught_up(line: Line, level: float) -> float | None:
    """Seconds of training until the validation is at this level, None where it never is."""
    return next((seconds for seconds, _, value, _ in line["curve"] if value is not None and value >= level), None)


def reaching(caught: Sequence[float | None]) -> str:
    """The mean of these seconds where there are some, and of how many."""
    reached = [seconds for seconds in caught if seconds is not None]
    level = format(mean(reached), ".1f") if reached else "-"
    return f"{level} ({len(reached)} of {len(caught)})" if caught else ""


def draw(out: Path) -> bool:
    """Draws the gains of a folder's summary, if it has any."""
    return draw_summary(out, PLAIN, "figures in bold: the best mixture with a flow on held-out simulations")


STUDY = Study(table, summary, draw)
