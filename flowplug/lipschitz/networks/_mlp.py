"""The multilayer perceptron that serves as residual branch for tables, with context."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowplug._arguments import as_shape, require_shape, require_sizes
from flowplug._reading import exporting
from flowplug.lipschitz.activations import SineHuber
from flowplug.lipschitz.layers import dense_layer
from flowplug.lipschitz.networks._chain import ChainBranch, knows_slope
from flowplug.lipschitz.networks._checks import check_sizes, make_activation, norms_of
from flowplug.lipschitz.networks._network import ClosedForm, LipschitzNetwork
from flowplug.lipschitz.norms import NetworkNorm, OperatorNorm, PathNorm


class LipschitzMLP(LipschitzNetwork):
    r"""A multilayer perceptron ``g(x, c)`` whose Lipschitz constant in x cannot exceed ``bound`` < 1.

    .. math:: h_0 = x, \quad h_l = \phi_l(\hat W_l h_{l-1} + b_l + V_l c), \quad g = \hat W_n h_{n-1} + b_n + V_n c

    with 1-Lipschitz :math:`\phi_l`, and weights bounded as a whole (`PathNorm`) or layer by layer, then with
    :math:`|\hat W_l| \le` ``bound ** (1 / n)``. The :math:`V_l` are unconstrained: only the dependence on x must be a
    contraction.

    Tables of a few thousand rows need weight decay (docs/benchmarks.md, "Residual flows with weight decay").

    Args:
        features: Width of the events, or their shape (e.g. ``(3, 8, 8)``), which is flattened inside.
        hidden_features: Widths of the hidden layers. At equal training time one wide layer a block and more blocks
            beat deeper networks.
        context_features: Width of the context, 0 for none.
        bound: Upper bound on the Lipschitz constant of the whole network, in (0, 1).
        norm: The norm the bound holds in: `PathNorm` for the network as a whole; `InfNorm`, `OneNorm`, `Gram`, `SVD`,
            `PowerIteration` or `LearnedOrder` for each layer; or one norm per layer, each from the norm in which the
            one before it ends, and the last back to that of x.
        activation: Makes one activation per hidden layer: `SineHuber`, `Sine`, `LipSwish`, `CLipSwish`, or any module
            with a known `lipschitz_bound` of at most 1, which may change the width. Exact Jacobians are fast (batched
            matrix products) for element-wise ones.
        zero_last: Whether the last layer starts at zero, so that ``x + g(x)`` starts as the identity.

    Raises:
        LipschitzError: ``bound`` is not in (0, 1), an activation has no known bound or one above 1, or the norms of
            the layers do not lead from one to the next and back.
        ShapeError: ``features`` or ``hidden_features`` hold a non-positive size, or an input has another shape.
        ContextError: The context is missing or has the wrong width.

    Example:
        >>> g = LipschitzMLP(3, (64, 64), context_features=2)
        >>> g(torch.randn(5, 3), torch.randn(5, 2)).shape
        torch.Size([5, 3])
    """

    event_shape: tuple[int, ...]

    def __init__(
        self,
        features: int | Sequence[int],
        hidden_features: Sequence[int] = (128,),
        *,
        context_features: int = 0,
        bound: float = 0.97,
        norm: OperatorNorm | NetworkNorm | Sequence[OperatorNorm] = PathNorm(),  # noqa: B008 -- frozen and stateless
        activation: Callable[[], nn.Module] = SineHuber,
        zero_last: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        require_shape(name, features=features)
        require_sizes(name, hidden_features=hidden_features)
        check_sizes(
            name, bound, context_features, zero_last=zero_last, features=features, hidden_features=hidden_features
        )
        self.event_shape = as_shape(features)
        size = width = math.prod(self.event_shape)
        norms = norms_of(name, norm, len(hidden_features) + 1)
        share = bound ** (1 / len(norms))
        layers, activations = [], []
        for hidden, inner in zip(hidden_features, norms, strict=False):
            layers.append(dense_layer(width, hidden, share, inner))
            module, width = make_activation(activation, inner, hidden, spatial=0)
            activations.append(module)
        layers.append(dense_layer(width, size, share, norms[-1]))
        self._finish(layers, activations, context_features=context_features, bound=bound, norm=norm, zero=zero_last)

    def _branch(self, context: Tensor | None, weights: Sequence[Tensor], shifts: Sequence[Tensor]) -> MLPBranch:
        return MLPBranch(self, context, weights, shifts)


class MLPBranch(ChainBranch):
    """A `LipschitzMLP` for one pass, with products in closed form."""

    def _chain(self, x: Tensor) -> Chain | None:
        parts = self._parts(x.flatten(1))
        return None if parts is None else Chain(parts.y.reshape(x.shape).to(x.dtype), parts.weights, parts.slopes)

    def core_size(self, event: Sequence[int]) -> int:
        """The narrowest width, where all activations know their slopes."""
        widths = [weight.shape[0] for weight in self._weights]
        return min(widths) if all(map(knows_slope, self._network.activations)) else widths[-1]


class Chain(ClosedForm):
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

    def select(self, index: Tensor | slice) -> Chain:
        """The same weights, the slopes of the rows in ``index``."""
        return Chain(self.y[index], self._weights, [slope[index] for slope in self._slopes])

    def trace(self) -> Tensor | None:
        """Linear in the slopes of one hidden layer, bilinear in those of two; unknown for more."""
        if len(self._weights) == 1:
            return self._weights[0].diagonal().sum().expand(self.y.shape[0])
        if len(self._weights) == 2:
            first, last = self._weights
            return self._slopes[0] @ (first * last.T).sum(1)
        if len(self._weights) == 3:
            first, middle, last = self._weights
            return (self._slopes[1] @ (middle * (first @ last).T) * self._slopes[0]).sum(1)
        return None

    def jacobian(self) -> Tensor:
        """The matrices ``(B, D, D)``."""
        if not self._slopes:
            return self._weights[0].expand(self.y.shape[0], -1, -1)
        return _product(self._weights, self._slopes)

    def core(self) -> Tensor:
        r"""The Jacobian cut at its narrowest layer, by Sylvester's identity :math:`\det(I + AB) = \det(I + BA)`.

        .. math:: J = (W_n D_{n-1} \cdots W_{l+1}) (D_l W_l \cdots D_1 W_1), \qquad
            M = D_l W_l \cdots D_1 (W_1 W_n) D_{n-1} \cdots W_{l+1}
        """
        first, *others = self._weights
        widths = [len(weight) for weight in self._weights]
        cut = widths.index(min(widths)) + 1  # of equal ones a hidden layer, where each row has a product less
        if cut == len(widths):
            return self.jacobian()
        *behind, last = others
        weights = [*behind[cut - 1 :], first @ last, *behind[: cut - 1]]
        slopes = [*self._slopes[cut:], *self._slopes[:cut]]
        matrices = _product(weights, slopes[:-1]) if len(weights) > 1 else weights[0]
        return slopes[-1].unsqueeze(2) * matrices


def _product(weights: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
    """The matrices ``(B, out, in)`` of weights with at least one row of slopes ``(B, H)`` between them."""
    first, *others = weights
    # (B, in, H): entry (b, i) is the derivative of row b's hidden units with respect to its input i, so that each step
    # is a product with what all rows share. The first step is linear in the slopes, W_2 D_1 W_1 = sum_h d_h (W_2)_h
    # (W_1)_h^T, and can be one product with the matrices of that sum, unless these are more numbers than D_1 W_1. A
    # program that is exported takes any number of rows.
    if not exporting() and slopes[0].shape[0] < others[0].shape[0]:
        tangent = functional.linear(slopes[0].unsqueeze(1) * first.T, others[0])
    else:
        matrices = first.unsqueeze(2) * others[0].T.unsqueeze(1)
        tangent = (slopes[0] @ matrices.flatten(1)).reshape(slopes[0].shape[0], *matrices.shape[1:])
    for slope, weight in zip(slopes[1:], others[1:], strict=True):
        tangent = functional.linear(slope.unsqueeze(1) * tangent, weight)
    return tangent.transpose(1, 2)
