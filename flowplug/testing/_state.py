"""Laws of what a transform keeps: the same numbers in every way, after every write, from every start."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from flowplug._errors import FlowplugError, StartWarning
from flowplug._noise import fixed_noise
from flowplug._start import FromData, reset
from flowplug.testing._case import Case, Direction, directions, inner, leaves, meet, whole
from flowplug.testing._comparison import require
from flowplug.testing._routes import LOADS, ROUTES


def runs_as_eagerly(case: Case) -> None:
    """Outputs, ladjs and their gradients are those of a fresh module with the same weights that runs eagerly.

    In train and eval mode, forward and inverse, with and without a graph, with the same noise, and again after the
    weights were changed in place. By it the statistical laws, which are checked eagerly, hold in every way of running.
    Under autocast this holds for the inverse, its ladj and their gradients; the forward pass has the precision of its
    dtype. A direction that is refused by name in a way is left out. On another device, whose generators draw other
    numbers, and under vmap, where log-dets are exact or refused, it holds for what does not depend on noise.
    """
    transform = case.build(training=True)
    graphs = "gradients" not in case.way.lacks
    for moment in ("at first", "after a change of the weights"):
        twin = case.twin(transform)
        wanted = _numbers(twin, case, graphs=graphs)
        noisy = set() if case.way.same_noise else _noisy(twin, case, wanted)
        got = _numbers(transform, case, graphs=graphs)
        for name in got:
            if name not in noisy:
                _require_same(f"{name}, {moment}", got[name], wanted[name], case, loose="forward" in name)
        with torch.no_grad():
            for parameter in transform.parameters():
                parameter.mul_(0.9)


def follows_written_weights(case: Case) -> None:
    """After any known way of writing parameters, both directions are those of a fresh module with these weights.

    In train and eval mode, with and without a graph, whatever values were served before the write.
    """
    routes = ROUTES if any(True for _ in case.fresh().parameters()) else LOADS
    transform = case.build(training=True)
    _numbers(transform, case, graphs=False)
    for name, route in routes.items():
        route(transform, _other_state(case))
        wanted = _numbers(case.twin(transform), case, graphs=False)
        got = _numbers(transform, case, graphs=False)
        for key in got:
            _require_same(f"{key}, after a write by {name}", got[key], wanted[key], case)


def starts_by_name(case: Case) -> None:
    """Asked to, a transform starts from the rows at hand, however few; `reset` makes it start as at first."""
    x, context = _data(case)
    transform = case.fresh()
    with torch.no_grad():
        wanted = transform(x, context)[0]
        meet(transform, case.x, case.context)
        few = transform(case.x, case.context)[0]
        reset(transform)
        _require_same("output after reset and a new start", transform(x, context)[0], wanted, case)
        meet(transform, case.x, case.context)
        _require_same("output after a start by name", transform(case.x, case.context)[0], few, case)
        meet(transform.eval(), x, context)
        _require_same("output after a start by name in eval mode", transform(x, context)[0], wanted, case)


def has_part_that_starts(case: Case) -> bool:
    """Whether a part of flowplug starts from data."""
    return any(isinstance(part, FromData) for part in case.fresh().modules())


def has_state(case: Case) -> bool:
    """Whether there is anything to write."""
    return bool(case.fresh().state_dict())


def _other_state(case: Case) -> dict[str, Tensor]:
    """That of a transform with other weights which started from other data."""
    other = case.fresh()
    with torch.no_grad():
        other(*_data(case))
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return dict(other.state_dict())


def starts_in_any_unit(case: Case) -> None:
    """A transform that starts from data standardises its first batch in any units, column by column, or refuses it."""
    x, context = _data(case)
    features = torch.linspace(-1, 1, x.shape[1], dtype=x.dtype, device=x.device)
    columns = features.reshape(-1, *[1] * (x.dim() - 2))
    scales: dict[str, Tensor | float] = {f"{scale:g}": scale for scale in (1e-30, 1e-12, 1e-6, 1e6, 1e12, 1e30)}
    scales |= {f"10^({power:g} t), t in [-1, 1]": 10 ** (power * columns) for power in (3, 12, 30)}
    for name, scale in scales.items():
        transform = case.fresh()
        with torch.no_grad():
            try:
                y, ladj = transform(scale * x, context)
            except FlowplugError:
                continue
        std, mean = _statistics(y)
        good = bool(ladj.isfinite().all()) and bool(((std - 1).abs() < 0.5).all()) and bool((mean.abs() < 0.1).all())
        require(good, f"first batch in units of {name}: means {mean.tolist()}, deviations {std.tolist()}")


def survives_a_small_start(case: Case) -> None:
    """A first call with two rows, or one, never ruins a start from data.

    The batch that follows gets means and deviations within a factor of 3 of those of a start with that batch.
    """
    x, context = _data(case)
    whole_start = case.fresh()
    with torch.no_grad():
        y = whole_start(x, context)[0]
        wanted, centre = _statistics(y)
        for count in (2, 1):
            transform = case.fresh()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", StartWarning)  # which says that they are few
                transform(x[:count], None if context is None else context[:count])
                for _ in range(2):
                    y = transform(x, context)[0]
            got, mean = _statistics(y)
            ratio = got / wanted
            good = bool(((ratio < 3) & (ratio > 1 / 3)).all()) and bool(((mean - centre).abs() < wanted).all())
            require(
                good,
                f"after {count} rows first, deviations {got.tolist()}, means {mean.tolist()}; after a start "
                f"with the batch {wanted.tolist()}, {centre.tolist()}",
            )


def starts_from_data(case: Case) -> bool:
    """Whether the first forward pass in train mode changes the state of a fresh transform."""
    transform = case.fresh()
    before = {name: value.clone() for name, value in transform.state_dict().items()}
    with torch.no_grad():
        transform(*_data(case))
    return any(not torch.equal(value, before[name]) for name, value in transform.state_dict().items())


def _data(case: Case) -> tuple[Tensor, Tensor | None]:
    """Rows with correlated columns that are not standardised."""
    x, context = case.rows(256 + 4 * case.x[0].numel())
    noise = 0.3 * torch.randn_like(x)
    return case.inside(20 * (x - x.mean(0) + noise) + 50), context


def _statistics(y: Tensor) -> tuple[Tensor, Tensor]:
    """Deviation and mean of every feature."""
    features = y.movedim(1, 0).flatten(1).double()
    return features.std(1), features.mean(1)


def _numbers(transform: Any, case: Case, *, graphs: bool) -> dict[str, Tensor]:  # noqa: ANN401
    """What a transform gives: outputs, ladjs and gradients by name, with the same noise each time it is asked.

    A direction that the transform refuses by name in this way of running is left out; not both.
    """
    found: dict[str, Tensor] = {}
    refused: list[Exception] = []
    for training in (True, False):
        transform.train(training)
        for direction, call, inputs, _ in directions(case, transform):
            key = f"{direction} in {'train' if training else 'eval'} mode"
            try:
                found |= _numbers_of(transform, call, inputs, key, case, graphs=graphs)
            except case.way.refuses as error:
                refused.append(error)
    if not found:
        raise refused[0]
    return found


def _numbers_of(
    transform: Any,  # noqa: ANN401
    call: Direction,
    inputs: Tensor,
    key: str,
    case: Case,
    *,
    graphs: bool,
) -> dict[str, Tensor]:
    mode = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad
    # Here, where what is sharded is so: after a pass, the whole parameters would be emptied instead.
    transform.zero_grad(set_to_none=True)
    with _same_draws(case.x), mode():
        output, ladj = call(inputs, case.context)
    found = {f"{key}, no graph: output": output, f"{key}, no graph: ladj": ladj}
    if not graphs:
        return found
    x, context = leaves(case, inputs)
    with _same_draws(case.x):
        output, ladj = call(x, context)
        found |= {f"{key}: output": output.detach(), f"{key}: ladj": ladj.detach()}
        weights = torch.linspace(0.5, 1.5, len(x), dtype=x.dtype, device=x.device)
        torch.autograd.backward((output.flatten(1).sin().sum(1) + ladj) @ weights)
    by = {**dict(inner(transform).named_parameters()), "the input": x}
    for name, leaf in by.items() if context is None else {**by, "the context": context}.items():
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        found[f"{key}: gradient of {name}"] = whole(gradient.detach()).clone()
    return found


@contextlib.contextmanager
def _same_draws(x: Tensor) -> Iterator[None]:
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(0)
        yield


def _noisy(twin: Any, case: Case, numbers: dict[str, Tensor]) -> set[str]:  # noqa: ANN401
    """The names of the numbers that depend on noise."""
    with fixed_noise(1):
        others = _numbers(twin, case, graphs="gradients" not in case.way.lacks)
    return {name for name, value in numbers.items() if not torch.equal(value, others[name])}


def _require_same(name: str, got: Tensor, wanted: Tensor, case: Case, *, loose: bool = False) -> None:
    require(got.shape == wanted.shape, f"{name}: expected shape {tuple(wanted.shape)}, got {tuple(got.shape)}")
    if not wanted.numel():
        return
    got = got.to(wanted.device)
    worst = float((got - wanted).abs().max() / (1 + wanted.abs().max()))
    # Gradients through an inverse are as good as its solver, which ends a little above rounding.
    allowed = 10_000 * torch.finfo(wanted.dtype).eps if "gradient" in name else 1000 * torch.finfo(wanted.dtype).eps
    if loose and case.way.loose is not None:
        # Of a gradient in half precision, little more than its size: norms change the entry that is their largest.
        allowed = 5 * case.way.loose if "gradient" in name else case.way.loose
    require(worst <= allowed, f"{name}: relative deviation {worst:.3g}, allowed {allowed:.3g}")
