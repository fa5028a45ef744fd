"""The norms that are sums of absolute values: of rows, and of columns."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowplug._precision import at_least_single
from flowplug.lipschitz.norms._operator_norm import OperatorNorm


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
        return at_least_single(weight).abs().flatten(1).sum(dim=1).amax()

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
