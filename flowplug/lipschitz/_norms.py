"""Operator norms as strategies of a layer: how its weight is measured and kept within a bound."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowplug.lipschitz._bound import LipschitzBound


class OperatorNorm(abc.ABC):
    """Measures linear maps in one induced norm, from above, and shrinks those that exceed a bound.

    A weight is a matrix ``(out_features, in_features)`` or the kernel ``(out_channels, in_channels, *kernel)`` of a
    convolution of stride 1, whose bound holds for images of every size. Both methods are differentiable, and pure
    functions of the weight unless the norm says otherwise.
    """

    @abc.abstractmethod
    def orders(self) -> tuple[float | Tensor, float | Tensor]:
        """The orders p and q of the norms of inputs and outputs: floats or, where trained, scalar tensors."""

    @abc.abstractmethod
    def measure(self, weight: Tensor) -> Tensor:
        """An upper bound on the induced norm, a scalar tensor."""

    def project(self, weight: Tensor, bound: float) -> Tensor:
        """A weight of norm at most ``bound``; the identity where the weight already fits."""
        return weight * (bound / self.measure(weight).clamp(min=bound))

    def project_all(self, weights: Sequence[Tensor], bound: float) -> list[Tensor]:
        """The same for several weights, where it pays together."""
        return [self.project(weight, bound) for weight in weights]

    def certify(self, weight: Tensor) -> LipschitzBound:
        """The bound of a layer with this weight in use."""
        p, q = map(_number, self.orders())
        return LipschitzBound(self.measure(weight), p, None if q == p else q)

    def lowest(self) -> float:
        """The smallest order that the norm of outputs can take."""
        return _number(self.orders()[1])

    def initialize_(self, weight: Tensor) -> None:
        """Fills a weight in place with random values that suit the norm; here orthogonal rows or columns."""
        nn.init.orthogonal_(weight)

    def attach(self, weight: Tensor) -> OperatorNorm:
        """What one layer uses: the norm itself, or a module that keeps what the norm remembers or learns."""
        del weight
        return self

    def chain(self, count: int) -> Sequence[OperatorNorm]:
        """The norms of ``count`` layers that follow each other."""
        return [self] * count


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Leaves autocast: a bound from products in half precision is no bound."""
    kind = tensor.device.type
    enabled = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if enabled else nullcontext()


def _number(order: float | Tensor) -> float:
    return float(order.detach()) if isinstance(order, Tensor) else order


@dataclass(frozen=True)
class InfNorm(OperatorNorm):
    r"""The induced inf-norm, the largest absolute row sum: exact, stateless and O(size).

    .. math:: |W|_\infty = \max_i \sum_j |W_{ij}|, \qquad \hat W_{ij} = W_{ij} \min(1, c / \textstyle\sum_j |W_{ij}|)

    Rows are shrunk one by one, so a large row costs the others nothing. The default for dense layers on their own;
    `PathNorm` bounds a network of them as a whole, more tightly. In a convolution a row holds all weights of one output
    channel.

    Example:
        >>> InfNorm().measure(torch.tensor([[1.0, -2.0], [0.5, 0.5]]))
        tensor(3.)
    """

    def orders(self) -> tuple[float, float]:
        """From inf to inf."""
        return math.inf, math.inf

    def measure(self, weight: Tensor) -> Tensor:
        """The largest absolute row sum."""
        return weight.abs().flatten(1).sum(dim=1).amax()

    def project(self, weight: Tensor, bound: float) -> Tensor:
        """Shrinks every row whose absolute sum exceeds ``bound`` to that sum."""
        sums = weight.abs().sum(dim=tuple(range(1, weight.dim())), keepdim=True)
        return weight * (bound / sums.clamp(min=bound))

    @torch.no_grad()
    def initialize_(self, weight: Tensor) -> None:
        """Cubes of normal variates, each row scaled to an absolute sum of 1.

        A row of n entries of like size passes on 1 / sqrt(n) of a random signal; heavy tails make a few entries carry
        the row, so that the network uses its bound from the start.
        """
        weight.normal_().pow_(3)
        weight.div_(weight.abs().sum(dim=tuple(range(1, weight.dim())), keepdim=True))


@dataclass(frozen=True)
class OneNorm(OperatorNorm):
    r"""The induced 1-norm, the largest absolute column sum: exact, stateless and O(size).

    .. math:: |W|_1 = \max_j \sum_i |W_{ij}|, \qquad \hat W_{ij} = W_{ij} \min(1, c / \textstyle\sum_i |W_{ij}|)

    Columns are shrunk one by one. In a convolution a column holds all weights of one input channel.

    Example:
        >>> OneNorm().measure(torch.tensor([[1.0, -2.0], [0.5, 0.5]]))
        tensor(2.5000)
    """

    def orders(self) -> tuple[float, float]:
        """From 1 to 1."""
        return 1.0, 1.0

    def measure(self, weight: Tensor) -> Tensor:
        """The largest absolute column sum."""
        return InfNorm().measure(weight.transpose(0, 1))

    def project(self, weight: Tensor, bound: float) -> Tensor:
        """Shrinks every column whose absolute sum exceeds ``bound`` to that sum."""
        return InfNorm().project(weight.transpose(0, 1), bound).transpose(0, 1)

    def initialize_(self, weight: Tensor) -> None:
        """Cubes of normal variates, each column scaled to an absolute sum of 1."""
        InfNorm().initialize_(weight.transpose(0, 1))
