"""The derivative of a solution by the implicit function theorem, in place of a graph through the iterations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowplug._branch import Branch, Linearization
from flowplug._errors import SecondDerivativeError
from flowplug.lipschitz._bound import LipschitzBound
from flowplug.solvers._iteration import event_norm

Solver = Callable[[Branch, Tensor, LipschitzBound], Tensor]


def _dual(norm: float | None) -> float | None:
    """The order of the norm in which ``J^T`` contracts if ``J`` does in that of order ``norm``."""
    if norm is None:
        return None
    if norm == 1:
        return math.inf
    return 1.0 if math.isinf(norm) else norm / (norm - 1)


class Adjoint(Branch):
    """The map ``u -> J^T u`` of a linearization: the adjoint equation is a residual equation with it as g."""

    def __init__(self, linear: Linearization) -> None:
        self._linear = linear

    def __call__(self, x: Tensor) -> Tensor:
        """``J^T x`` row by row."""
        return self._linear.vjp(x)

    def rows(self, index: Tensor | slice) -> Adjoint:
        """The adjoint at the rows in ``index`` only."""
        return Adjoint(self._linear.rows(index))


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, solver: Solver, branch: Branch, bound: LipschitzBound) -> Tensor:  # noqa: ANN401
        ctx.solver, ctx.branch, ctx.bound = solver, branch, bound
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        if torch.is_grad_enabled():
            raise SecondDerivativeError(
                "the inverse of a residual transform is differentiable once: call autograd without create_graph=True, "
                "or differentiate forward instead"
            )
        (x,) = ctx.saved_tensors
        (v,) = grads
        dual = LipschitzBound(float(ctx.bound), _dual(ctx.bound.norm))
        # Rows whose incoming gradient is not finite stay so, for loss scaling to see; the others are solved at norm 1,
        # so that a tolerance is relative to the gradient.
        size = event_norm(v, dual.norm)
        usable = size.isfinite() & (size > 0)
        size, usable = (part.reshape(-1, *[1] * (v.dim() - 1)) for part in (size, usable))
        u = size * ctx.solver(Adjoint(ctx.branch.linearize(x.detach())), torch.where(usable, v / size, 0.0), dual)
        return torch.where(usable, u, v), None, None, None


def solve(solver: Solver, branch: Branch, y: Tensor, bound: LipschitzBound) -> Tensor:
    r"""The solution of :math:`x + g(x) = y`, differentiable once with respect to y, the weights and the context.

    The implicit function theorem gives :math:`dx = (I + J)^{-1} (dy - dg)`; the backward pass solves
    :math:`(I + J)^T u = v` with the same solver, whose contraction has the same bound in the dual norm. Memory does
    not depend on the number of iterations.

    Raises:
        NotConverged: The solver failed, here or in the backward pass.
        SecondDerivativeError: In the backward pass, if a graph of it is asked for.
    """
    x = solver(branch, y.detach(), bound)
    if not torch.is_grad_enabled():
        return x
    # One more step of the iteration, with the graph of y, the weights and the context.
    x = y - branch(x)
    if x.requires_grad:
        x = _Implicit.apply(x, solver, branch, bound)  # type: ignore[no-untyped-call]
    return x
