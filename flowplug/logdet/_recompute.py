"""Any gradient of a log-det, with its graph built in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowplug._derivatives import once
from flowplug._errors import LipschitzError
from flowplug._reading import transformed
from flowplug.branch import Branch
from flowplug.logdet._neumann import Neumann
from flowplug.logdet._recurrence import Draw, Solved
from flowplug.logdet._series import Gradient, Problem, Series, require_gradient

_ONCE = (
    "Recompute is differentiable once: for a second derivative (score matching, Hessians) pass logdet=ExactLogDet() or "
    "PowerSeries(gradient=Autograd()) to the residual transform, and the same as eval_logdet in eval mode"
)


@dataclass(frozen=True)
class Recompute(Gradient):
    r"""Keeps x and the vectors of every probe instead of the graph, and builds the graph again in the backward pass.

    Peak memory does not grow with the number of terms under `Neumann`, and little with the number of blocks, at the
    price of one more evaluation of g and one more product; of `Autograd` the whole series is repeated. The gradient is
    that of ``gradient`` exactly, for any per-sample weights of the loss, unlike one that is computed early, in the
    forward pass, as if all weights were equal. Works with ``torch.func.functional_call``, autocast and
    DistributedDataParallel; differentiable once.

    Args:
        gradient: What is recomputed.

    Raises:
        TypeError: ``gradient`` is no gradient.
        LipschitzError: g draws random numbers (dropout): it would be another function when recomputed.
        SecondDerivativeError: When a derivative is differentiated.

    Example:
        >>> logdet = Krylov(gradient=Recompute(Neumann()))
    """

    gradient: Gradient = Neumann()  # noqa: RUF009 -- frozen

    def __post_init__(self) -> None:
        require_gradient("Recompute", self.gradient)

    @property
    def apart(self) -> Gradient | None:
        """That of ``gradient``: what a compiled graph keeps, the compiler decides."""
        return self.gradient.apart

    def check(self, series: Series) -> None:
        """As ``gradient``."""
        self.gradient.check(series)

    def solve(self, problem: Problem) -> list[Solved]:
        """As ``gradient``."""
        return self.gradient.solve(problem)

    def attach(self, problem: Problem, solved: Sequence[Solved]) -> Tensor:
        """As ``gradient``."""
        return self.gradient.attach(problem, solved)

    def __call__(self, series: Series, branch: Branch, x: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        """The value, with a gradient that is computed when asked for."""
        if transformed():  # torch.func keeps its own graph, whatever is recomputed
            return self.gradient(series, branch, x, draws)
        named = dict(branch.g.named_parameters())
        y, ladj = _Recomputed.apply(  # type: ignore[no-untyped-call]
            self.gradient, series, branch, draws, tuple(named), x, branch.context, *named.values()
        )
        return y, ladj


class _Pass(nn.Module):
    """One evaluation of the branch as a module, so that its parameters can be put in place."""

    def __init__(self, g: nn.Module) -> None:
        super().__init__()
        self.g = g

    def forward(
        self,
        gradient: Gradient,
        series: Series,
        draws: Sequence[Draw],
        solved: Sequence[Solved],
        x: Tensor,
        context: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """``g(x)`` and the estimate, with their graph."""
        problem = Problem.at(series, Branch.of(self.g, context), x, draws)
        return problem.linear.y, gradient.attach(problem, solved)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        gradient: Gradient,
        series: Series,
        branch: Branch,
        draws: Sequence[Draw],
        names: Sequence[str],
        x: Tensor,
        context: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        problem = _repeatable(series, branch, x, draws)
        solved = gradient.solve(problem)
        ctx.gradient, ctx.series, ctx.draws, ctx.g, ctx.names = gradient, series, draws, branch.g, names
        kind = x.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.count = len(solved)
        ctx.save_for_backward(*(part for found in solved for part in found), x, context, *parameters)
        return problem.linear.y.detach(), gradient.attach(problem, solved).detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        tensors, size = ctx.saved_tensors, len(Solved._fields)  # once: checkpointing lets them be unpacked once
        flat, saved = tensors[: size * ctx.count], tensors[size * ctx.count :]
        solved = [Solved(*flat[i : i + size]) for i in range(0, len(flat), size)]
        leaves = [None if tensor is None else tensor.detach().requires_grad_(tensor.requires_grad) for tensor in saved]
        x, context, *parameters = leaves
        kind, dtype, enabled = ctx.autocast
        with torch.enable_grad(), torch.autocast(kind, dtype=dtype, enabled=enabled):
            named: dict[str, Any] = {f"g.{name}": p for name, p in zip(ctx.names, parameters, strict=True)}
            arguments = (ctx.gradient, ctx.series, ctx.draws, solved, x, context)
            outputs = torch.func.functional_call(_Pass(ctx.g), named, arguments)
        wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        # The log-det of an affine branch with frozen weights is a constant.
        used = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if output.requires_grad]
        targets, seeds = zip(*used, strict=True)
        found = torch.autograd.grad(targets, wanted, [seed.detach() for seed in seeds], allow_unused=True)
        if torch.is_grad_enabled():
            sources = [tensor for tensor in (*saved, *grads) if tensor is not None and tensor.requires_grad]
            found = tuple(None if part is None else once(part, _ONCE, *sources) for part in found)
        parts = iter(found)
        return (None,) * 5 + tuple(None if leaf is None or not leaf.requires_grad else next(parts) for leaf in leaves)


def _repeatable(series: Series, branch: Branch, x: Tensor, draws: Sequence[Draw]) -> Problem:
    """Evaluates g at x.

    Raises:
        LipschitzError: It drew random numbers.
    """
    before = _random_state(x)
    problem = Problem.at(series, branch, x, draws)
    if not torch.equal(before, _random_state(x)):
        raise LipschitzError(
            f"g = {type(branch.g).__name__} draws random numbers (dropout?), so x + g(x) is no function of x and "
            "has no inverse, and Recompute cannot repeat it: remove the random modules"
        )
    return problem


def _random_state(x: Tensor) -> Tensor:
    return torch.cuda.get_rng_state(x.device) if x.is_cuda else torch.get_rng_state()
