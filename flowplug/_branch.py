"""The residual branch ``x -> g(x, c)`` of one pass: weights and context fixed, rows independent."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowplug._errors import ShapeError
from flowplug.lipschitz._bound import LipschitzBound, lipschitz_bound


class Branch:
    """What log-det estimators and solvers see of ``g``.

    A network that can share work between the evaluations of one pass (bounded weights, embedded context) or knows a
    faster Jacobian offers a method ``branch(context)`` that returns its own subclass.
    """

    def __init__(self, g: nn.Module, context: Tensor | None) -> None:
        self.g, self.context = g, context

    @staticmethod
    def of(g: nn.Module, context: Tensor | None) -> Branch:
        """The branch of ``g`` for rows of context ``(B, context_features)``."""
        make: Callable[[Tensor | None], Branch] | None = getattr(g, "branch", None)
        return Branch(g, context) if make is None else make(context)

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluates ``g`` on rows ``x: (B, *event)``."""
        y: Tensor = self.g(x) if self.context is None else self.g(x, self.context)
        if y.shape != x.shape:
            raise ShapeError(
                f"g = {type(self.g).__name__} must keep the shape of its input {tuple(x.shape)}; "
                f"it returned {tuple(y.shape)}"
            )
        return y

    def rows(self, index: Tensor) -> Branch:
        """The branch of the rows in ``index`` only."""
        return Branch(self.g, None if self.context is None else self.context[index])

    def lipschitz_bound(self) -> LipschitzBound:
        """The bound of ``g`` from the weights in use."""
        return lipschitz_bound(self.g)

    def jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``g(x): (B, *event)`` and its Jacobian ``(B, D, D)`` by D vector-Jacobian products, D the event's size."""
        y, vjp = linearize(self, x)
        size = math.prod(x.shape[1:])
        basis = torch.eye(size, dtype=y.dtype, device=y.device).reshape(size, 1, *x.shape[1:]).expand(size, *y.shape)
        products = vjp(basis, batched=True, create_graph=torch.is_grad_enabled())
        return y, products.reshape(size, len(x), size).transpose(0, 1)


class VectorJacobianProduct:
    """``v -> J^T v`` at one point, by the graph of one evaluation."""

    def __init__(self, y: Tensor, x: Tensor) -> None:
        self._y, self._x = y, x

    def __call__(self, v: Tensor, *, create_graph: bool = False, batched: bool = False) -> Tensor:
        """The product for ``v: (B, *event)``, or for a stack ``(K, B, *event)`` when ``batched``."""
        return torch.autograd.grad(
            self._y,
            self._x,
            v,
            retain_graph=True,
            create_graph=create_graph,
            is_grads_batched=batched,
            allow_unused=True,
            materialize_grads=True,
        )[0]


def linearize(branch: Branch, x: Tensor) -> tuple[Tensor, VectorJacobianProduct]:
    """``g(x)`` and its vector-Jacobian product at ``x: (B, *event)``; works in any grad mode."""
    with torch.enable_grad():
        # A view, not x: paths from x to the context or to other inputs are no part of the Jacobian, and the caller's
        # tensor is not marked.
        point = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        y = branch(point).to(x.dtype)  # autocast lowers it
    return y, VectorJacobianProduct(y, point)
