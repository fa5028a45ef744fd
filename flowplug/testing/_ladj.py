"""Laws of the log-det: its value, its first and second derivatives, the noise of its estimates."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from flowplug._errors import SecondDerivativeError, VmapError
from flowplug._noise import fixed_noise
from flowplug.testing._case import Case, directions, exact_ladj, inner, jacobian, leaves, whole
from flowplug.testing._comparison import deviation, require, require_close, z_test


def estimates_ladj(case: Case) -> None:
    """The ladj is log|det| of the autograd Jacobian, exactly or on average."""
    transform = case.build(training=True)
    truth = exact_ladj(transform, case.x, case.context, differentiable=False)
    with torch.no_grad():
        _require_mean("ladj", case, lambda: [transform(case.x, case.context)[1]], [truth])


def estimates_ladj_gradient(case: Case) -> None:
    """The gradient of a randomly weighted sum of ladjs is right, for parameters, inputs and context."""
    transform = case.build(training=True)
    x, context = leaves(case, case.x)
    by = [*transform.parameters(), x, *([] if context is None else [context])]
    weights = torch.randn(len(x), dtype=x.dtype, device=x.device)

    def gradient(ladj: Tensor) -> list[Tensor]:
        return _gradient(weights @ ladj, by)

    truth = gradient(exact_ladj(transform, x, context, differentiable=True))
    _require_mean("gradient of the ladj", case, lambda: gradient(transform(x, context)[1]), truth)


def estimates_second_derivatives(case: Case) -> None:
    r"""Second derivatives of the ladj are right, exactly or on average, or `SecondDerivativeError` is raised.

    For random weights w and vectors v, the derivatives of :math:`v \cdot \nabla_x (w \cdot \mathrm{ladj})` by x, a
    Hessian-vector product, and by parameters and context, as in score matching, are compared with those of log|det| of
    the autograd Jacobian.
    """
    transform = case.build(training=True)
    x, context = leaves(case, case.x)
    weights, vectors = torch.randn(len(x), dtype=x.dtype, device=x.device), torch.randn_like(x)
    groups = {
        "inputs": [x],
        "parameters": [leaf for leaf in transform.parameters() if leaf.requires_grad],
        "the context": [] if context is None else [context],
    }

    def second(ladj: Tensor, by: Sequence[Tensor]) -> list[Tensor]:
        (gradient,) = _gradient(weights @ ladj, [x], create_graph=True)
        return _gradient((vectors * gradient).sum(), by)

    for name, by in groups.items():
        try:
            second(transform(x, context)[1], by)
        except SecondDerivativeError:
            continue
        truth = second(exact_ladj(transform, x, context, differentiable=True), by)
        draw = partial(lambda by: second(transform(x, context)[1], by), by)
        _require_mean(f"second derivative by {name}", case, draw, truth, share=4)  # a draw takes three passes


def maps_over_rows(case: Case) -> None:
    """``vmap(jacrev(...))`` and ``vmap(grad(...))`` of torch.func are what autograd finds, or `VmapError` is raised."""
    transform = case.build(training=False)
    x, context = leaves(case, case.x)
    in_dims = (0, None if context is None else 0)

    def output(x: Tensor, context: Tensor | None) -> Tensor:
        y: Tensor = transform(x, context)[0]
        return y

    def ladj(x: Tensor, context: Tensor | None) -> Tensor:
        value: Tensor = transform(x, context)[1]
        return value

    try:
        matrices = torch.func.vmap(torch.func.jacrev(output), in_dims)(x.detach(), context)
        gradients = torch.func.vmap(torch.func.grad(ladj), in_dims)(x.detach(), context)
    except VmapError:
        return
    matrix = jacobian(transform, x, context, differentiable=False)
    require_close("vmap(jacrev) of the output", matrices.detach().reshape(matrix.shape), matrix)
    require_close("vmap(grad) of the ladj", gradients.detach(), _gradient(transform(x, context)[1].sum(), [x])[0])


def repeats_noise(case: Case) -> None:
    """Within `fixed_noise` values repeat; their gradients are those of that noise, taken within it or after it."""
    transform = case.build(training=True)
    for name, direction, inputs, _ in directions(case, transform):
        found: list[Tensor] = []
        for within in (True, False):
            transform.zero_grad(set_to_none=True)
            x, context = leaves(case, inputs)
            with fixed_noise(3):
                output, ladj = direction(x, context)
                if within:
                    torch.autograd.backward(output.sum() + ladj.sum())
            if not within:
                torch.autograd.backward(output.sum() + ladj.sum())
            gradients = [whole(p.grad).flatten() for p in inner(transform).parameters() if p.grad is not None]
            by_x = torch.zeros_like(x) if x.grad is None else x.grad
            found.append(torch.cat([output.detach().flatten(), ladj.detach(), by_x.flatten(), *gradients]))
        require_close(f"{name} with fixed noise", found[1], found[0])


def cuts_no_noise(case: Case) -> None:
    """In eval mode an estimate belongs to its row: to nothing else of the batch, to no way of cutting it, to no mode.

    Two calls agree. Rows alone, reversed, and with and without a graph have the same ladj to rounding, and a tiny step
    moves it little. Over many rows the errors do not add up: their mean is within five standard errors of a quarter.
    """
    transform = case.build(training=False)
    x, context = case.rows(7)

    def ladj(index: Tensor | slice, *, shift: float = 0.0) -> Tensor:
        estimate: Tensor = transform(x[index] + shift, None if context is None else context[index])[1]
        return estimate.detach()

    with torch.no_grad():
        wanted = ladj(slice(None))
        require(torch.equal(ladj(slice(None)), wanted), "two calls in eval mode disagree")
        alone = torch.cat([ladj(slice(i, i + 1)) for i in range(len(x))])
        require_close("ladj of rows alone", alone, wanted)
        require_close("ladj of rows in two parts", torch.cat([ladj(slice(0, 3)), ladj(slice(3, None))]), wanted)
        order = torch.arange(len(x), device=x.device).flip(0)
        require_close("ladj of rows in reverse", ladj(order), wanted[order])
        step = math.sqrt(torch.finfo(x.dtype).eps)
        require_close("ladj after a step of sqrt(eps)", ladj(slice(None), shift=step), wanted, units=1000 / step)
    require_close("ladj with a graph", ladj(slice(None)), wanted)
    for _ in range(4):  # transforms, each with its own noise
        _require_independent_errors(case)


def _require_independent_errors(case: Case) -> None:
    transform = case.build(training=False)
    x, context = case.rows(400)
    x = case.inside(x + case.x.std() * torch.randn_like(x))  # as far from each other as rows are
    truth = exact_ladj(transform, x, context, differentiable=False)
    with torch.no_grad():
        estimate = transform(x, context)[1]
    if deviation("ladj", estimate, truth) > 10_000 * torch.finfo(x.dtype).eps:
        # Close rows may have similar errors: as if every fourth row counted.
        share = float((estimate - truth).mean().abs() * math.sqrt(len(x) / 4) / (estimate - truth).std())
        require(share < 5, f"mean error over {len(x)} rows in eval mode: {share:.3g} standard errors, allowed 5")


def _gradient(value: Tensor, by: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    # A constant: right for an affine map without parameters, and zero in the oracle too.
    if not by or not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in by]
    return list(torch.autograd.grad(value, by, create_graph=create_graph, allow_unused=True, materialize_grads=True))


def _require_mean(
    name: str, case: Case, draw: Callable[[], Sequence[Tensor]], truth: Sequence[Tensor], *, share: int = 1
) -> None:
    first, second = draw(), draw()
    allowed = 10_000 * torch.finfo(case.x.dtype).eps
    exact = all(deviation(name, got, wanted) <= allowed for got, wanted in zip(first, truth, strict=True))
    # Two draws of an estimate may coincide by chance; where they are not exact as well, their mean is tested.
    if not (exact and all(map(torch.equal, first, second))):
        z_test(name, (draw() for _ in itertools.repeat(None, case.draws // share)), truth)
