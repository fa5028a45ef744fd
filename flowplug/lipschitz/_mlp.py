"""The multilayer perceptron that serves as residual branch for tables, with context."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowplug._branch import Branch, Linearization
from flowplug._errors import ContextError, LipschitzError, ShapeError
from flowplug.lipschitz._activations import Activation, Sine
from flowplug.lipschitz._bound import LipschitzBound, compose_bounds, lipschitz_bound
from flowplug.lipschitz._linear import LipschitzLinear
from flowplug.lipschitz._norms import InfNorm, OperatorNorm


class LipschitzMLP(nn.Module):
    r"""A multilayer perceptron ``g(x, c)`` whose Lipschitz constant in x cannot exceed ``bound`` < 1.

    .. math:: h_0 = x, \quad h_l = \phi_l(\hat W_l h_{l-1} + b_l + V_l c), \quad g = \hat W_n h_{n-1} + b_n + V_n c

    with :math:`|\hat W_l| \le` ``bound ** (1 / n)`` and 1-Lipschitz :math:`\phi_l`. The :math:`V_l` are unconstrained:
    only the dependence on x must be a contraction.

    Args:
        features: Width of the events, or their shape (e.g. ``(3, 8, 8)``), which is flattened inside.
        hidden_features: Widths of the hidden layers. At equal training time one wide layer a block and more blocks
            beat deeper networks.
        context_features: Width of the context, 0 for none.
        bound: Upper bound on the Lipschitz constant of the whole network, in (0, 1).
        norm: The norm the bound holds in: `InfNorm` or `Gram`.
        activation: Makes one activation per hidden layer: `Sine`, `LipSwish`, or any module with a known
            `lipschitz_bound` of at most 1. Exact Jacobians are fast (batched matrix products) for flowplug's own.

    Raises:
        LipschitzError: ``bound`` is not in (0, 1), or an activation has no known bound or one above 1.
        ShapeError: ``features`` or ``hidden_features`` hold a non-positive size, or an input has another shape.
        ContextError: The context is missing or has the wrong width.

    Example:
        >>> g = LipschitzMLP(3, (64, 64), context_features=2)
        >>> g(torch.randn(5, 3), torch.randn(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        hidden_features: Sequence[int] = (128,),
        *,
        context_features: int = 0,
        bound: float = 0.97,
        norm: OperatorNorm = InfNorm(),  # noqa: B008 -- frozen and stateless
        activation: Callable[[], nn.Module] = Sine,
    ) -> None:
        super().__init__()
        if not 0 < bound < 1:
            raise LipschitzError(
                f"LipschitzMLP(bound=...) must be in (0, 1), else x + g(x) may not invert; got {bound}"
            )
        self.event_shape = (features,) if isinstance(features, int) else tuple(features)
        width = math.prod(self.event_shape)
        widths = [width, *hidden_features, width]
        if min(widths) < 1 or context_features < 0:
            raise ShapeError(
                f"LipschitzMLP needs positive sizes; got features={features}, "
                f"hidden_features={tuple(hidden_features)}, context_features={context_features}"
            )
        self.context_features = context_features
        self.norm = norm
        layer_bound = bound ** (1 / (len(widths) - 1))
        self.layers = nn.ModuleList(
            LipschitzLinear(a, b, bound=layer_bound, norm=norm) for a, b in itertools.pairwise(widths)
        )
        self.activations = nn.ModuleList(activation() for _ in hidden_features)
        for module in self.activations:
            if not float(lipschitz_bound(module)) <= 1:
                raise LipschitzError(f"{type(module).__name__} has the bound {lipschitz_bound(module)}, above 1")
        self.embedding = nn.Linear(context_features, sum(widths[1:]), bias=False) if context_features else None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Maps ``(*batch, *event)``, with a context ``(*batch, context_features)``, to the same shape."""
        batch = x.shape[: x.dim() - len(self.event_shape)]
        if x.shape[len(batch) :] != self.event_shape:
            raise ShapeError(f"LipschitzMLP expects inputs (*batch, *{self.event_shape}); got {tuple(x.shape)}")
        rows = math.prod(batch)
        if context is not None:
            context = context.expand(*batch, context.shape[-1]).reshape(rows, context.shape[-1])
        return self.branch(context)(x.reshape(rows, *self.event_shape)).reshape(x.shape)

    def branch(self, context: Tensor | None) -> MLPBranch:
        """The network for one pass: weights bounded and context ``(B, context_features)`` embedded once.

        Raises:
            ContextError: The context is missing or has the wrong width.
        """
        layers = [cast(LipschitzLinear, layer) for layer in self.layers]
        shifts: list[Tensor] = [layer.bias for layer in layers]
        if self.embedding is not None:
            if context is None or context.shape[-1] != self.context_features:
                got = "none" if context is None else f"shape {tuple(context.shape)}"
                raise ContextError(f"LipschitzMLP needs a context of width {self.context_features}; got {got}")
            embedded = self.embedding(context).split([layer.out_features for layer in layers], dim=-1)
            shifts = [bias + part for bias, part in zip(shifts, embedded, strict=True)]
        return MLPBranch(self, context, self.bounded_weights(), shifts)

    def bounded_weights(self) -> list[Tensor]:
        """The weights in use, one per layer."""
        return [cast(LipschitzLinear, layer).bounded_weight() for layer in self.layers]

    def certify(self, weights: Sequence[Tensor]) -> LipschitzBound:
        """The Lipschitz bound of the network with these weights in use."""
        norm = self.norm
        parts = [LipschitzBound(norm.measure(weight), norm.order) for weight in weights]
        return compose_bounds(type(self).__name__, *parts, *map(lipschitz_bound, self.activations))


class MLPBranch(Branch):
    """A `LipschitzMLP` with its bounded weights and context shifts, ``(H,)`` or ``(B, H)``, computed once."""

    def __init__(
        self, g: LipschitzMLP, context: Tensor | None, weights: Sequence[Tensor], shifts: Sequence[Tensor]
    ) -> None:
        super().__init__(g, context)
        self._network, self._weights, self._shifts = g, weights, shifts

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluates the network on rows ``x: (B, *event)``."""
        hidden = self._affine(0, x.flatten(1))
        for i, activation in enumerate(self._network.activations, 1):
            hidden = self._affine(i, activation(hidden))
        return hidden.reshape(x.shape)

    def _affine(self, i: int, hidden: Tensor) -> Tensor:
        weight, shift = self._weights[i], self._shifts[i]
        if shift.dim() == 1:
            return functional.linear(hidden, weight, shift)
        return functional.linear(hidden, weight) + shift

    def rows(self, index: Tensor | slice) -> MLPBranch:
        """The branch of the rows in ``index`` only."""
        shifts = [shift if shift.dim() == 1 else shift[index] for shift in self._shifts]
        return MLPBranch(self._network, None if self.context is None else self.context[index], self._weights, shifts)

    def lipschitz_bound(self) -> LipschitzBound:
        """The bound of the network from the weights of this pass."""
        return self._network.certify(self._weights)

    def linearize(self, x: Tensor) -> Linearization:
        """Products as explicit chains, where activations know their slope: no graph to walk, each slope taken once."""
        chain = self._chain(x)
        return super().linearize(x) if chain is None else chain

    def jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and Jacobian in one chain of batched matrix products, where activations know their slope."""
        chain = self._chain(x)
        return super().jacobian(x) if chain is None else (chain.y, chain.jacobian())

    def _chain(self, x: Tensor) -> Chain | None:
        activations = [module for module in self._network.activations if isinstance(module, Activation)]
        if len(activations) < len(self._network.activations):
            return None
        hidden, slopes = self._affine(0, x.flatten(1)), []
        for i, activation in enumerate(activations, 1):
            hidden, slope = activation.linearize(hidden)
            hidden = self._affine(i, hidden)
            slopes.append(slope)
        return Chain(hidden.reshape(x.shape).to(x.dtype), self._weights, slopes)


class Chain(Linearization):
    r"""The derivative :math:`J = W_n D_{n-1} W_{n-1} \cdots D_1 W_1` of a perceptron, factor by factor.

    Args:
        y: ``g(x): (B, *event)``.
        weights: The :math:`W_l`, ``(H_l, H_{l-1})``.
        slopes: The diagonals of the :math:`D_l`, ``(B, H_l)``.
    """

    def __init__(self, y: Tensor, weights: Sequence[Tensor], slopes: Sequence[Tensor]) -> None:
        self.y, self._weights, self._slopes = y, weights, slopes

    def vjp(self, v: Tensor, *, create_graph: bool = False) -> Tensor:
        """``J^T v``, layer by layer."""
        with torch.set_grad_enabled(create_graph):
            product = v.flatten(1) @ self._weights[-1]
            for slope, weight in zip(reversed(self._slopes), reversed(self._weights[:-1]), strict=True):
                product = (slope * product) @ weight
            return product.reshape(v.shape).to(v.dtype)

    def rows(self, index: Tensor | slice) -> Chain:
        """The same weights, the slopes of the rows in ``index``."""
        return Chain(self.y[index], self._weights, [slope[index] for slope in self._slopes])

    def trace(self) -> Tensor | None:
        """Linear in the slopes of one hidden layer, bilinear in those of two; unknown for more."""
        if len(self._weights) == 1:
            return self._weights[0].diagonal().sum().expand(len(self.y))
        if len(self._weights) == 2:
            first, last = self._weights
            return self._slopes[0] @ (first * last.T).sum(1)
        if len(self._weights) == 3:
            first, middle, last = self._weights
            return (self._slopes[1] @ (middle * (first @ last).T) * self._slopes[0]).sum(1)
        return None

    def jacobian(self) -> Tensor:
        """The matrices ``(B, D, D)``."""
        # (B, D, H): entry (b, d) is the derivative of row b's hidden units with respect to its input d. With the
        # hidden units last, each step is one product of a (B D, H) matrix with the weight.
        tangent = self._weights[0].T.expand(len(self.y), -1, -1)
        for slope, weight in zip(self._slopes, self._weights[1:], strict=True):
            tangent = functional.linear(slope.unsqueeze(1) * tangent, weight)
        return tangent.transpose(1, 2)


@lipschitz_bound.register
def _(module: LipschitzMLP) -> LipschitzBound:
    return module.certify(module.bounded_weights())
