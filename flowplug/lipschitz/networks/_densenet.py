"""The dense network, whose layers see all layers before them, as residual branch for tables and images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowplug._arguments import as_shape, require_ints, require_shape, require_sizes
from flowplug._errors import LipschitzError
from flowplug._precision import in_dtype
from flowplug.branch import LipschitzBound, compose_bounds
from flowplug.lipschitz.activations import CLipSwish
from flowplug.lipschitz.layers import Layer, conv_layer, dense_layer
from flowplug.lipschitz.networks._checks import check_sizes, make_activation, norms_of
from flowplug.lipschitz.networks._conv_chain import channels_last
from flowplug.lipschitz.networks._dense_chain import DenseChain, DenseConvChain, knows_slopes, with_slopes
from flowplug.lipschitz.networks._network import Affine, LipschitzNetwork, NetworkBranch
from flowplug.lipschitz.norms import Gram, NetworkNorm, OperatorNorm


class LipschitzDenseNet(LipschitzNetwork):
    r"""An i-DenseNet ``g(x, c)``: each layer adds to what all layers before it found, by learnable concatenation.

    .. math:: h_0 = x, \quad h_l = \big[\eta_l h_{l-1}, \; \theta_l \phi_l(\hat W_l h_{l-1} + b_l + V_l c)\big],
        \quad g = \hat W_n h_{n-1} + b_n + V_n c

    The hidden :math:`\hat W_l` have norm at most 1 and the last one ``bound``. In the p-norm the learned weights of a
    concatenation satisfy :math:`|(\eta_l, \theta_l)|_p = 1`, which keeps its constant at 1; for p = inf both may be 1.

    Args:
        features: Width of the events, or their shape, which is flattened inside; with ``kernel_size``, the number of
            channels of images.
        hidden_features: Number of features, or channels, that each hidden layer adds.
        kernel_size: Size of the kernels of the hidden layers, for images of any size; the last layer has one pixel.
            ``None``: dense layers.
        context_features: Width of the context, 0 for none.
        bound: Upper bound on the Lipschitz constant of the whole network, in (0, 1).
        norm: The norm the bound holds in, with one order for all spaces.
        activation: Makes one activation per hidden layer, as in `LipschitzMLP`.
        zero_last: Whether the last layer starts at zero, so that ``x + g(x)`` starts as the identity.

    Raises:
        LipschitzError: ``bound`` is not in (0, 1), an activation has no known bound or one above 1, or the norm is one
            from p to q.
        ShapeError: A size is not positive, or an input has another shape.
        ContextError: The context is missing or has the wrong width.

    Reference: Perugachi-Diaz, Tomczak, Bhulai, "Invertible DenseNets with Concatenated LipSwish", NeurIPS 2021.

    Example:
        >>> g = LipschitzDenseNet(3, (16, 16, 16), context_features=2)
        >>> g(torch.randn(5, 3), torch.randn(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        hidden_features: Sequence[int] = (32, 32, 32),
        *,
        kernel_size: int | None = None,
        context_features: int = 0,
        bound: float = 0.97,
        norm: OperatorNorm = Gram(),  # noqa: B008 -- frozen and stateless
        activation: Callable[[], nn.Module] = CLipSwish,
        zero_last: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if isinstance(norm, NetworkNorm):
            raise LipschitzError(f"{name} bounds each layer on its own, which {norm} does not: use InfNorm() instead")
        require_shape(name, features=features)
        require_sizes(name, hidden_features=hidden_features)
        kernel = 1 if kernel_size is None else kernel_size
        require_ints(name, kernel_size=kernel)
        check_sizes(
            name,
            bound,
            context_features,
            zero_last=zero_last,
            features=features,
            hidden_features=hidden_features,
            kernel_size=kernel,
        )
        event = as_shape(features)
        self.event_shape = event if kernel_size is None else (math.prod(event), None, None)
        size = width = math.prod(event)

        def layer(out: int, kernel: int, limit: float, norm: OperatorNorm | NetworkNorm) -> Layer:
            if kernel_size is None:
                return dense_layer(width, out, limit, norm)
            return conv_layer(width, out, kernel, limit, norm, "zeros")

        norms = norms_of(name, norm, len(hidden_features) + 1)
        layers, activations = [], []
        for hidden, inner in zip(hidden_features, norms, strict=False):
            layers.append(layer(hidden, kernel, 1.0, inner))
            module, added = make_activation(activation, inner, hidden, spatial=0 if kernel_size is None else 2)
            activations.append(module)
            width += added
        layers.append(layer(size, 1, bound, norms[-1]))
        self.raw_mix = nn.Parameter(torch.zeros(len(hidden_features), 2))
        self._finish(layers, activations, context_features=context_features, bound=bound, norm=norm, zero=zero_last)

    def _branch(self, context: Tensor | None, weights: Sequence[Tensor], shifts: Sequence[Tensor]) -> DenseBranch:
        return DenseBranch(self, context, weights, shifts)

    def evaluate(self, x: Tensor, affine: Affine) -> Tensor:
        """The features of all layers, then the last one; their weights in concatenations are those of a branch."""
        for i, activation in enumerate(self.activations):
            x = torch.cat([x, activation(affine(i, x))], dim=1)
        return affine(len(self.activations), x)

    def certify(self, weights: Sequence[Tensor]) -> LipschitzBound:
        """The bound of the network: each concatenation has the p-norm of the bounds of its two parts."""
        name, bounds = type(self).__name__, []
        *hidden, last = self.layer_bounds(weights)
        for layer, activation, (old, new) in zip(hidden, self.activations, self.mixes(), strict=True):
            part = compose_bounds(name, layer, activation)
            if part.domain is None or part.codomain is not None:
                raise LipschitzError(
                    f"{name} concatenates the input and the output of a layer, which has the bound {part}: use one "
                    "norm for both (LearnedOrder(shared=True) for a learned one)"
                )
            value = _norm(torch.stack([old, new * part.value]), part.domain)
            bounds.append(LipschitzBound(value, part.domain))
        return compose_bounds(name, *bounds, last)

    def mixes(self) -> Tensor:
        """The weights ``(eta, theta)`` of each concatenation, ``(layers, 2)``, of norm 1."""
        mixes = functional.softplus(self.raw_mix)
        # The certificate asks for one norm for all.
        size = _norm(mixes, self._limited()[0].norm.orders()[1])
        return mixes / size.unsqueeze(-1)


def _norm(pair: Tensor, order: float | Tensor) -> Tensor:
    """The norms of pairs ``(..., 2)`` of non-negative numbers, differentiable in both and in the order."""
    largest = pair.amax(-1)
    if isinstance(order, float) and math.isinf(order):
        return largest
    return largest * (pair / largest.unsqueeze(-1)).pow(order).sum(-1).pow(1 / order)


class DenseBranch(NetworkBranch):
    """A `LipschitzDenseNet` for one pass: the weights of its concatenations are folded into those of the layers."""

    _network: LipschitzDenseNet

    def __init__(
        self, g: LipschitzDenseNet, context: Tensor | None, weights: Sequence[Tensor], shifts: Sequence[Tensor]
    ) -> None:
        super().__init__(g, context, weights, shifts)
        first, *behind = weights
        self._folded, shares = [first], first.new_ones(first.shape[1])
        for weight, (old, new) in zip(behind, g.mixes().unbind(), strict=True):
            added = new.expand(weight.shape[1] - len(shares))
            shares = torch.cat([old * shares, added])
            self._folded.append(weight * shares.reshape(-1, *[1] * (weight.dim() - 2)))
        if first.dim() > 2:
            self._folded = list(map(channels_last, self._folded))

    def _affine(self, i: int, hidden: Tensor) -> Tensor:
        layer = cast(Layer, self._network.layers[i])
        return layer.affine(hidden, self._folded[i], self._shifts[i])

    def _chain(self, x: Tensor) -> DenseChain | DenseConvChain | None:
        activations = list(self._network.activations)
        if not all(map(knows_slopes, activations)):
            return None
        on_images = None in self._network.event_shape
        features, slopes = x if on_images else x.flatten(1), []
        for i, activation in enumerate(activations):
            value, slope = with_slopes(activation, self._affine(i, features))
            features = torch.cat([features, value], dim=1)
            slopes.append(slope)
        y = in_dtype(self._affine(-1, features).reshape(x.shape), x.dtype)
        return (DenseConvChain if on_images else DenseChain)(y.contiguous(), self._folded, slopes)
