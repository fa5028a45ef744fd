"""The derivative of dense networks in closed form."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowplug._precision import in_dtype
from flowplug.branch import lipschitz_bound
from flowplug.lipschitz.activations import Activation, CLipSwish, linearize
from flowplug.lipschitz.networks._conv_chain import Adjoint, scaled
from flowplug.lipschitz.networks._network import ClosedForm


class Slopes(NamedTuple):
    """Slopes ``(B, H, ...)``, and by what those of each copy of the H features differ from them."""

    first: Tensor
    offsets: tuple[float, ...] = (0.0,)

    def select(self, index: Tensor | slice) -> Slopes:
        """Those of the rows in ``index``."""
        return Slopes(self.first[index], self.offsets)


def knows_slopes(activation: nn.Module) -> bool:
    """Whether `with_slopes` can find them."""
    if isinstance(activation, CLipSwish):
        return type(activation).forward is CLipSwish.forward
    return isinstance(activation, Activation) or lipschitz_bound(activation).elementwise


def with_slopes(activation: nn.Module, x: Tensor) -> tuple[Tensor, Slopes]:
    """The value at ``x: (B, H, ...)``, and the slopes of the copies that it holds."""
    if isinstance(activation, CLipSwish):
        value, slope, offset = activation.linearize(x)
        return value, Slopes(slope, (0.0, offset))
    if isinstance(activation, Activation):
        return activation(x), Slopes(activation.derivative(x))
    value, slope = linearize(activation, x)
    return value, Slopes(slope)


class DenseChain(ClosedForm):
    r"""The derivative of a dense network, layer by layer: each one's slopes, and the features that it adds to.

    Args:
        y: ``g(x): (B, *event)``.
        weights: The folded weights ``(H_l, F_l)``, over all :math:`F_l` features before layer l.
        slopes: Those of each hidden layer.
    """

    def __init__(self, y: Tensor, weights: Sequence[Tensor], slopes: Sequence[Slopes]) -> None:
        self.y, self._weights, self._slopes = y, weights, slopes

    def vjp(self, v: Tensor, *, create_graph: bool = False) -> Tensor:
        """``J^T v``, layer by layer."""
        with torch.set_grad_enabled(create_graph):
            product = v.flatten(1) @ self._weights[-1]
            for slopes, weight in zip(reversed(self._slopes), reversed(self._weights[:-1]), strict=True):
                rest, pulled = pulled_through(slopes, product, *weight.shape)
                product = torch.addmm(rest, pulled, weight)
            return in_dtype(product.reshape(v.shape), v.dtype)

    def select(self, index: Tensor | slice) -> DenseChain:
        """The same weights, the slopes of the rows in ``index``."""
        return DenseChain(self.y[index], self._weights, [slopes.select(index) for slopes in self._slopes])

    def jacobian(self) -> Tensor:
        """The matrices ``(B, D, D)``."""
        *hidden, last = self._weights
        # (B, D, F): entry (b, d) is the derivative of row b's features with respect to its input d.
        tangent = torch.eye(len(last), dtype=self.y.dtype, device=self.y.device).expand(self.y.shape[0], -1, -1)
        for slopes, weight in zip(self._slopes, hidden, strict=True):
            change = functional.linear(tangent, weight)
            copies = [(slopes.first + offset).unsqueeze(1) * change for offset in slopes.offsets]
            tangent = torch.cat([tangent, *copies], dim=2)
        return functional.linear(tangent, last).transpose(1, 2)


class DenseConvChain(ClosedForm):
    """The same of a dense network on images.

    Args:
        y: ``g(x): (B, C, H, W)``.
        weights: The folded kernels ``(H_l, F_l, k, k)``.
        slopes: Those of each hidden layer.
    """

    def __init__(self, y: Tensor, weights: Sequence[Tensor], slopes: Sequence[Slopes]) -> None:
        self.y, self._slopes, self._sizes = y, slopes, [weight.shape[:2] for weight in weights]
        self._adjoints = [Adjoint(weight, circular=False) for weight in weights]

    def vjp(self, v: Tensor, *, create_graph: bool = False) -> Tensor:
        """``J^T v``, layer by layer."""
        with torch.set_grad_enabled(create_graph):
            *adjoints, last = self._adjoints
            product, hidden = last(v), zip(self._slopes, adjoints, self._sizes[:-1], strict=True)
            for slopes, adjoint, sizes in reversed(list(hidden)):
                rest, pulled = pulled_through(slopes, product, *sizes)
                product = rest + adjoint(pulled)
            return in_dtype(product.contiguous(), v.dtype)

    def select(self, index: Tensor | slice) -> DenseConvChain:
        """The same kernels, the slopes of the rows in ``index``."""
        chain = copy.copy(self)
        chain.y, chain._slopes = self.y[index], [slopes.select(index) for slopes in self._slopes]
        return chain


def pulled_through(slopes: Slopes, product: Tensor, out: int, before: int) -> tuple[Tensor, Tensor]:
    """Products with all features: those with the ``before`` ones of a layer, and with its ``out`` before activation."""
    rest, *copies = product.split_with_sizes([before, *[out] * len(slopes.offsets)], dim=1)
    pulled = scaled(functools.reduce(torch.add, copies), slopes.first)
    for one, offset in zip(copies, slopes.offsets, strict=True):
        pulled = torch.add(pulled, one, alpha=offset) if offset else pulled
    return rest, pulled
