"""examples/common/training.py: what a step does, when a run ends, and what it keeps."""

import copy
import io
import itertools
import math
import time
from contextlib import redirect_stderr
from functools import partial

import pytest
import torch
import zuko
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from common.training import Options, Training, compiled, constant, nll, rows_of, watched


@pytest.fixture
def run():
    """Makes a run of a linear layer towards a target it can reach."""

    def make(rows=None, *, evaluate=None, after_step=lambda: None, **options):
        torch.manual_seed(0)
        layer = nn.Linear(2, 1)
        sample = rows_of(torch.randn(100, 2)) if rows is None else rows
        loss = lambda x: (layer(x) - x.sum(1, keepdim=True) - 1).square().mean()  # noqa: E731
        return Training(layer, loss, sample, Options(**options), evaluate=evaluate, after_step=after_step)

    return make


def test_a_run_reaches_its_minimum_in_so_many_steps(run):
    training = run(steps=300, lr=0.1)
    losses = list(training)
    assert len(losses) == training.step == 300
    assert losses[-1] < 1e-4 * losses[0]
    torch.testing.assert_close(training.module.weight, torch.ones(1, 2), atol=0.01, rtol=0)


def test_batches_are_rows_of_the_table_or_fresh():
    rows = torch.randn(10, 3)
    batch = rows_of(rows)(500)
    assert batch.shape == (500, 3)
    assert len(batch.unique(dim=0)) == 10
    seen = []
    layer = nn.Linear(3, 1)
    fresh = lambda count: seen.append(torch.randn(count, 3)) or seen[-1]  # noqa: E731
    Training(layer, nll(lambda x: -layer(x).square()), fresh, Options(steps=4, batch=7)).run()
    assert [len(x) for x in seen] == [7, 7, 7, 7]
    assert not torch.equal(seen[0], seen[1])


def test_the_learning_rate_warms_up_and_falls_to_zero(run):
    training = run(steps=20, lr=2e-3, warmup=5)
    rates = [training.optimizer.param_groups[0]["lr"] for _ in training]
    wanted = [2e-3 * min(1, (i + 1) / 5) * (1 + math.cos(math.pi * i / 20)) / 2 for i in range(20)]
    assert rates == pytest.approx(wanted)


def test_the_schedule_is_the_callers(run):
    training = run(steps=3, lr=0.5, schedule=constant)
    assert [training.optimizer.param_groups[0]["lr"] for _ in training] == [0.5] * 3


def test_weights_decay_beside_the_gradient(run):
    runs = [run(steps=100, weight_decay=decay, lr=2e-3) for decay in (0.0, 5.0)]
    start = [parameter.detach().clone() for parameter in runs[0].module.parameters()]
    for training in runs:
        torch.manual_seed(1)
        next(iter(training))
    for before, plain, decayed in zip(start, *(training.module.parameters() for training in runs), strict=True):
        torch.testing.assert_close(plain - decayed, 2e-3 * 5.0 * before, rtol=0, atol=1e-6)


def test_gradients_are_clipped_in_the_norm_of_all(run):
    training = run(steps=1, clip=0.01).run()
    norm = math.hypot(*(float(parameter.grad.norm()) for parameter in training.module.parameters()))
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_validation_does_not_count_as_time():
    now = [0.0]

    def passing(seconds, value):
        now[0] += seconds
        return value

    layer = nn.Linear(2, 1)
    options = Options(seconds=1.0, clock=lambda: now[0], checks=4)
    sample = lambda count: passing(0.125, torch.randn(count, 2))  # noqa: E731
    run = Training(layer, lambda x: layer(x).mean(), sample, options, evaluate=lambda: passing(5.0, 1.0)).run()
    assert (run.step, run.elapsed, now[0]) == (8, 1.0, 21.0)
    assert [point[:2] for point in run.curve] == [[0.25, 2], [0.5, 4], [0.75, 6], [1.0, 8]]


@pytest.mark.parametrize("clock", [time.perf_counter, time.process_time])
def test_seconds_end_a_run(run, clock):
    start = clock()
    training = run(seconds=0.05, clock=clock).run()
    assert 0.05 <= training.elapsed <= clock() - start
    assert training.step > 1


def test_what_a_caller_does_between_steps_does_not_count(run):
    times = itertools.count()
    training = run(seconds=5.0, clock=lambda: float(next(times)))
    for _ in training:
        next(times)
    assert training.step == 4  # a second each, and one in which the first loss is read


def test_validations_are_spread_over_a_run_and_end_it(run):
    training = run(steps=20, checks=4, evaluate=lambda: 1.0).run()
    assert [step for _, step, _, _ in training.curve] == [5, 10, 15, 20]


def test_the_best_state_is_kept(run):
    values, states = iter([1.0, 3.0, math.nan, 2.0]), []

    def evaluate():
        states.append(copy.deepcopy(training.module.state_dict()))
        return next(values)

    training = run(steps=4, checks=4, evaluate=evaluate)
    training.run()
    assert training.best == 3.0
    assert not torch.equal(training.module.weight, states[1]["weight"])
    training.restore()
    assert torch.equal(training.module.weight, states[1]["weight"])


def test_without_a_finite_validation_nothing_can_be_restored(run):
    with pytest.raises(FloatingPointError, match="no validation log-likelihood was finite"):
        run(steps=2, evaluate=lambda: math.nan).run().restore()


def test_the_host_has_its_say_after_every_step(run):
    calls = []
    run(steps=3, after_step=lambda: calls.append(1)).run()
    assert len(calls) == 3


def test_a_loss_that_is_no_number_leaves_the_parameters(run):
    training = run(lambda count: torch.full((count, 2), math.nan), steps=3)
    before = copy.deepcopy(training.module.state_dict())
    with pytest.raises(FloatingPointError, match="the loss of step 0 is nan"):
        training.run()
    assert torch.equal(training.module.weight, before["weight"])


def test_a_loss_that_is_no_number_is_found_when_it_is_read(run):
    batches = lambda count: torch.randn(count, 2) if len(seen) != 4 else torch.full((count, 2), math.nan)  # noqa: E731
    seen, states = [], []
    keep = lambda: states.append(training.module.weight.detach().clone())  # noqa: E731
    training = run(lambda count: seen.append(batches(count)) or seen[-1], steps=30, every=10, after_step=keep)
    with pytest.raises(FloatingPointError, match="the loss of step 4 is nan"):
        training.run()
    assert len(seen) == 10
    assert not torch.equal(states[3], states[2])
    assert all(torch.equal(training.module.weight, state) for state in states[3:])


class Reads(TorchDispatchMode):
    """Counts what a GPU would be waited for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_a_step_reads_nothing(run):
    training = run(steps=3)
    with Reads() as reads:
        training.advance()
        training.advance()
    assert reads.count == 0


def test_a_fused_step_is_that_of_adamw(run):
    training = run(steps=5, weight_decay=0.1, schedule=constant)
    other = copy.deepcopy(training.module)
    plain = torch.optim.AdamW(other.parameters(), 5e-3, weight_decay=0.1, fused=False, foreach=False)
    for _ in training:
        for parameter, own in zip(other.parameters(), training.module.parameters(), strict=True):
            parameter.grad = own.grad.clone()
        plain.step()
    torch.testing.assert_close(training.module.weight, other.weight)


def test_the_training_curve_is_the_mean_since_the_last_validation(run):
    training = run(steps=9, checks=3, every=2, evaluate=lambda: 0.0)
    losses = list(map(float, training))
    wanted = [-sum(losses[i : i + 3]) / 3 for i in (0, 3, 6)]
    assert [point[3] for point in training.curve] == pytest.approx(wanted)


def test_what_is_compiled_before_the_start_does_not_count(run, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    now, calls = [0.0], []
    training = run(seconds=3.0, clock=lambda: now[0], compile=True)
    before = copy.deepcopy(training.module.state_dict())
    loss = nll(lambda x: -training.module(x)[:, 0].square(), compile=True)

    def counted(x):
        calls.append(torch.equal(training.module.weight, before["weight"]))
        now[0] += 1.0
        return loss(x)

    training.loss = counted
    training.run()
    assert (training.step, training.elapsed) == (3, 3.0)
    assert calls == [True] * 11 + [False] * 2
    assert training.compiling > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the compiler about what it traces
def test_what_is_compiled_has_the_gradients_of_eager():
    flow, x = zuko.flows.NSF(6, transforms=1, hidden_features=(16,)), torch.randn(64, 6)

    def gradients(log_prob):
        flow.zero_grad()
        log_prob(x).mean().backward()
        return [parameter.grad.clone() for parameter in flow.parameters()]

    wanted = gradients(lambda x: flow().log_prob(x))
    got = gradients(compiled(lambda x: flow().log_prob(x)))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_caller_may_end_a_run_and_go_on(run):
    training = run(steps=9)
    for _ in training:
        if training.step == 4:
            break
    assert training.done == pytest.approx(4 / 9)
    assert len(list(training)) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either steps or seconds"),
        ({"steps": 1, "seconds": 1.0}, "either steps or seconds"),
        ({"steps": 0}, "steps must be positive; got 0"),
        ({"seconds": -1.0}, "seconds must be positive"),
        ({"steps": 1, "lr": math.nan}, "lr must be positive; got nan"),
        ({"steps": 1, "weight_decay": -0.1}, "weight_decay must not be negative"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)


def test_a_run_can_be_watched(run):
    with redirect_stderr(io.StringIO()) as text:
        losses = list(watched(run(steps=5, evaluate=lambda: 1.5), "a name", hidden=False))
    assert len(losses) == 5
    assert "a name" in text.getvalue()
    assert "100%" in text.getvalue()
    assert "best validation 1.500 nats" in text.getvalue()
