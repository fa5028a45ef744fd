"""The derivative of a solution by the implicit function theorem, in place of a graph through the iterations."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from flowplug._derivatives import once
from flowplug._errors import InverseNotAvailable
from flowplug._functions import Function
from flowplug._precision import full_precision
from flowplug._reading import refuse_vmap, transformed
from flowplug.branch import Branch, Linearization, LipschitzBound
from flowplug.solvers._iteration import event_norm

_NO_PRODUCTS = (
    "the backward pass of an inverse solves (I + J^T) u = v by products with J^T alone: a solver that linearizes its "
    "branch can find inverses, but no derivatives of them; use Anderson() or FixedPoint()"
)

_ONCE = (
    "the inverse of a residual transform is differentiable once: differentiate forward twice instead, whose exact "
    "log-det is right to every order"
)


class Solver(Protocol):
    r"""Finds the inverse of a residual map; its derivative needs no more than that.

    The backward pass of an inverse calls the solver too, with the map :math:`u \mapsto J^T u` for g. Of that branch it
    may use what `Anderson` uses: calls, ``select`` and ``lipschitz_bound``.

    Example:
        >>> branch = Branch.of(LipschitzMLP(2), None)
        >>> y = torch.randn(5, 2)
        >>> x = Anderson()(branch, y)
        >>> torch.allclose(x + branch(x), y, atol=1e-5)
        True
    """

    def __call__(self, branch: Branch, y: Tensor) -> Tensor:
        """The solutions ``x: (B, *event)`` of :math:`x + g(x) = y`, without a graph.

        Raises:
            NotConverged: Some were not found.
        """


class Adjoint(Branch):
    """The map ``u -> J^T u`` of a linearization: the adjoint equation is a residual equation with it as g."""

    def __init__(self, linear: Linearization, lipschitz: LipschitzBound) -> None:
        self._linear, self._lipschitz = linear, lipschitz

    def __call__(self, x: Tensor) -> Tensor:
        """``J^T x`` row by row."""
        return self._linear.vjp(x)

    def select(self, index: Tensor | slice) -> Adjoint:
        """The adjoint at the rows in ``index`` only."""
        return Adjoint(self._linear.select(index), self.lipschitz_bound())

    def linearize(self, x: Tensor) -> Linearization:
        """Refuses: its products would be those with J, which a linearization does not offer.

        Raises:
            InverseNotAvailable: Always.
        """
        raise InverseNotAvailable(_NO_PRODUCTS)

    def jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Refuses, as `linearize`.

        Raises:
            InverseNotAvailable: Always.
        """
        raise InverseNotAvailable(_NO_PRODUCTS)


class _Implicit(Function):
    @staticmethod
    def forward(x: Tensor, solver: Solver, branch: Branch) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
        x, ctx.solver, ctx.branch = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (x,) = ctx.saved_tensors
        v = grads[0].detach()
        with full_precision(x):
            u = _adjoint(ctx.solver, ctx.branch, x.detach(), v)
        if torch.is_grad_enabled():
            u = once(u, _ONCE, x, grads[0])
        return u, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:  # noqa: ANN401
        raise InverseNotAvailable(f"no forward-mode derivative of an inverse: {_NO_PRODUCTS}")


def _adjoint(solver: Solver, branch: Branch, x: Tensor, v: Tensor) -> Tensor:
    """The solution of (I + J^T) u = v at x, row by row."""
    lipschitz = branch.lipschitz_bound().dual()
    # Rows whose incoming gradient is not finite stay so, for loss scaling to see; the others are solved at norm 1, so
    # that a tolerance is relative to the gradient.
    size = event_norm(v, lipschitz.domain)
    usable = size.isfinite() & (size > 0)
    size, usable = (part.reshape(-1, *[1] * (v.dim() - 1)) for part in (size, usable))
    u = size * solver(Adjoint(branch.linearize(x), lipschitz), torch.where(usable, v / size, 0.0))
    return torch.where(usable, u, v)


def solve(solver: Solver, branch: Branch, y: Tensor) -> Tensor:
    r"""The solution of :math:`x + g(x) = y`, differentiable once with respect to y, the weights and the context.

    The implicit function theorem gives :math:`dx = (I + J)^{-1} (dy - dg)`; the backward pass solves
    :math:`(I + J)^T u = v` with the same solver, whose contraction has the same bound in the dual norm. Memory does
    not depend on the number of iterations.

    Raises:
        NotConverged: The solver failed, here or in the backward pass.
        SecondDerivativeError: When a derivative is differentiated.
        InverseNotAvailable: When a derivative is taken in forward mode.
        VmapError: The caller is inside `torch.func.vmap`.
    """
    refuse_vmap(
        "the numerical inverse of a residual transform runs until every row has converged",
        "call it on the whole batch, of any number of dimensions",
    )
    x = solver(branch, y.detach()).detach()
    if not (torch.is_grad_enabled() or transformed()):
        return x
    # One more step of the iteration, with the graph of y, the weights and the context.
    x = y - branch(x)
    if x.requires_grad or transformed():
        x = _Implicit.run(x, solver, branch)
    return x
