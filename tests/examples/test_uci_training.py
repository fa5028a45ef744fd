"""examples/uci/training.py: averages, checkpoints, and runs that stop."""

import copy
import itertools
import math
import time
from functools import partial

import pytest
import torch

import flowplug as fp
from common.processes import Processes
from common.report import read_lines
from common.tables import load
from uci import models, report
from uci.__main__ import measured
from uci.training import Training

CONFIG = {
    "data": "table", "model": "zuko-maf", "seed": 0, "seconds": 600.0, "steps": 20, "parameters": 1500, "batch": 64,
    "lr": 2e-3, "weight_decay": 0.0, "warmup": 5, "clip": 100.0, "decay": 0.999, "checks": 40, "patience": 15,
    "amp": False, "processes": 1,
}  # fmt: skip


@pytest.fixture
def training(table, tmp_path):
    """Makes a run of a few steps, with other options or another model."""
    return lambda **changes: Training({**CONFIG, **changes}, load(table), Processes("cpu"), tmp_path)


@pytest.fixture
def _traced(monkeypatch):
    """torch.compile without a compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def same(state, other):
    return all(torch.equal(value, other[key]) for key, value in state.items())


def test_seconds_are_of_the_wall_or_of_the_processor(training):
    assert training().options.clock is time.perf_counter
    assert training(cpu=True).options.clock is time.process_time


@pytest.mark.slow
def test_the_noise_of_normflows_goes_on_too(training, monkeypatch):
    monkeypatch.setattr("uci.training.make", lambda *_: models.MODELS["normflows-residual"](6, 8))
    run = training(steps=8)
    for _, done in zip(run, range(1, 9), strict=False):
        if done == 4:
            run.save()
    again = training(steps=8)
    again.resume()
    again.run()
    assert again.step == run.step == 8
    assert same(again.density.state_dict(), run.density.state_dict())


def test_checkpoints_are_written_every_so_many_seconds(training):
    run = training()
    run.every, run.save = 10.0, lambda: saves.append(run.step) or setattr(run, "saved", run.elapsed)
    times, saves = itertools.count(), []
    object.__setattr__(run.options, "clock", lambda: next(times))
    run.run()
    assert saves == [5, 10, 15, 20]  # a second each, and one to read its loss before each validation


def test_a_gradient_that_is_no_number_stops_the_run_before_the_step(training):
    run = training()
    before = copy.deepcopy(run.density.state_dict())
    next(run.density.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match="the norm of the gradient of step 0 is"):
        next(iter(run))
    assert same(run.density.state_dict(), before)
    assert run.failure.exists()


def test_what_is_not_finite_is_null_in_the_results(training, tmp_path):
    run, calls = training(), []

    def overflow_at_first(flow, x):
        calls.append(x)
        return flow().log_prob(x) if len(calls) > 1 else x.new_full((len(x),), float("nan"))

    def diverge(flow, x):
        raise fp.NonFiniteError("overflow")

    run.averaged._log_prob, run.averaged._round_trip = overflow_at_first, diverge
    run.run()
    line = {"config": run.config, "published": False, **measured(run)}
    report.STUDY.report([line], tmp_path)
    assert read_lines(tmp_path / "results.jsonl") == [line]
    assert [point[2] is None for point in line["curve"]] == [True] + 19 * [False]
    assert line["round_trip_error"] is line["sampling_ms"] is None
    assert "| - | - |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("error", [fp.NonFiniteError, fp.SingularMatrixError])
def test_validation_survives_rows_that_overflow(training, error):
    run = training()

    def overflow(flow, x):
        raise error("overflow")

    run.averaged._log_prob = overflow
    run.run()
    assert run.step == 15  # patience
    with pytest.raises(FloatingPointError, match="no validation log-likelihood was finite"):
        measured(run)


def test_the_best_average_is_tested_and_patience_ends(training):
    run = training(steps=40, patience=3)
    values, states = iter([0.0, 2.0, 1.0, 1.9, 1.5, 9.0]), []

    def scripted(density, _):
        states.append(copy.deepcopy(density.state_dict()))
        value = next(values)
        return torch.tensor([value - 1, value + 1])

    run.processes.log_likelihoods = scripted
    run.run()
    assert (run.step, run.best) == (5, 2.0)
    assert same(states[1], run.best_state)
    assert not same(states[2], run.best_state)
    assert measured(run)["test_log_likelihood"] == 9
    assert same(states[-1], run.best_state)


def test_the_average_is_polyaks(training):
    run, wanted = training(decay=0.5), None
    for count, _ in enumerate(run):
        now = torch.nn.utils.parameters_to_vector(run.density.parameters()).detach()
        decay = min(0.5, (1 + count) / (10 + count))
        wanted = now if wanted is None else decay * wanted + (1 - decay) * now
        average = torch.nn.utils.parameters_to_vector(run.averaged.parameters())
        torch.testing.assert_close(average, wanted, atol=1e-6, rtol=0)
    assert count == 19


def test_the_step_is_that_of_the_options(training):
    run = training(weight_decay=0.1, clip=1e-9, seconds=5.0, steps=0)
    assert (run.options.seconds, run.options.steps, run.options.batch) == (5.0, None, 64)
    assert run.optimizer.param_groups[0]["weight_decay"] == 0.1
    next(iter(run))
    gradients = [parameter.grad.norm() for parameter in run.density.parameters()]
    assert math.hypot(*gradients) <= 1.01e-9
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(2e-3 / 5)


def test_mixed_precision_is_of_bfloat16(training):
    full, mixed = (
        [float(next(iter(training(model=model, amp=amp)))) for model in ("zuko-maf", "dense")] for amp in (False, True)
    )
    assert full != mixed
    assert mixed == pytest.approx(full, rel=0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("_traced")
def test_a_compiled_run_is_compiled_before_it_starts(training):
    run = training(compile=True, steps=2)
    before, noise, rows = copy.deepcopy(run.density.state_dict()), torch.get_rng_state(), run.generator.get_state()
    run.warm_up()
    assert same(run.density.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), noise)
    assert torch.equal(run.generator.get_state(), rows)
    run.run()
    line = {"config": run.config, "published": False, **measured(run)}
    assert line["compile_seconds"] > line["seconds"] > 0
    assert "| zuko-maf, compiled |" in report.table([line])
    assert "compile_seconds" not in measured(training(steps=1).run())


def test_a_replayed_run_is_compiled_for_cuda_graphs(training, monkeypatch):
    compilations = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: compilations.append(options) or function)
    runs = [training(), training(compile=True), training(compile=True, replay=True)]
    assert compilations == [{"options": {"cpp.simdlen": 1}}, {"mode": "reduce-overhead"}]
    lines = [{"config": run.config, "published": False, "failed": "why"} for run in runs]
    titles = ["| zuko-maf |", "| zuko-maf, compiled |", "| zuko-maf, replayed |"]
    assert all(title in row for title, row in zip(titles, report.table(lines).splitlines()[2:], strict=True))


@pytest.mark.usefixtures("_traced")
def test_a_layer_that_overflows_stops_a_compiled_run(training):
    run, calls = training(compile=True, steps=4), []

    def asserted(flow, x):
        calls.append(x)
        if len(calls) > 12:
            raise RuntimeError("Layer: the input holds NaN or infinite values")
        return flow().log_prob(x)

    run.density._log_prob = torch.compiler.disable(asserted)
    with pytest.raises(FloatingPointError, match="the loss of step 2 is nan"):
        run.run()
    assert torch.load(run.failure, weights_only=True)["step"] == 2
