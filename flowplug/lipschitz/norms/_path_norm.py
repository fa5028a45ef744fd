"""One bound for a whole network: the sum over the paths from its inputs to an output."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from flowplug._precision import at_least_single, full_precision
from flowplug.branch import LipschitzBound, bound_in
from flowplug.lipschitz.norms._inf_norm import InfNorm
from flowplug.lipschitz.norms._network_norm import NetworkNorm


@dataclass(frozen=True)
class PathNorm(NetworkNorm):
    r"""The inf-norm of a network bounded as a whole instead of layer by layer: exact sums, no state, O(size).

    .. math:: |g|_\infty \le \max_i \big(|W_n| \cdots |W_1| \mathbf 1\big)_i,
        \qquad \hat W_n = \operatorname{diag}\big(\min(1, c / (|W_n| \cdots |W_1| \mathbf 1))\big) W_n

    with 1-Lipschitz element-wise activations between the layers and :math:`|W|` entry by entry. Only the rows of the
    last layer are shrunk. Since :math:`r_l = |W_l| r_{l-1}` bounds the slope of each hidden unit on its own, the bound
    is never above the product of the layers' inf-norms, which takes every unit for the steepest, and hidden units are
    free to be steep or flat. Behind an activation whose `LipschitzBound` is not ``elementwise`` all units count as the
    steepest.

    Reference: the norm is that of Neyshabur, Tomioka, Srebro, "Norm-Based Capacity Control in Neural Networks", COLT
    2015, per output.

    Example:
        >>> g = LipschitzMLP(3, (64,), norm=PathNorm(), bound=0.9)
        >>> bool(lipschitz_bound(g).value < 0.9001)
        True
    """

    @property
    def order(self) -> float:
        """Inf."""
        return math.inf

    def project(self, weights: Sequence[Tensor], activations: Sequence[nn.Module], bound: float) -> list[Tensor]:
        """The weights with every row of the last one shrunk until its paths sum to ``bound`` or less."""
        *hidden, last = weights
        slopes = _slopes(weights, activations)
        shares = (bound / slopes.clamp(min=bound)).to(last.dtype)
        return [*hidden, last * shares.reshape(-1, *[1] * (last.dim() - 1))]

    def certify(self, weights: Sequence[Tensor], activations: Sequence[nn.Module]) -> LipschitzBound:
        """The largest sum over the paths to an output."""
        return LipschitzBound(_slopes(weights, activations).amax(), math.inf)

    def initialize_(self, weight: Tensor) -> None:
        """As `InfNorm`: heavy tails, each row scaled to an absolute sum of 1."""
        InfNorm().initialize_(weight)


def _slopes(weights: Sequence[Tensor], activations: Sequence[nn.Module]) -> Tensor:
    """Bounds on the slopes of all outputs, ``(out,)``."""
    sizes = (at_least_single(weight).abs() for weight in weights)
    first, *others = (size.flatten(2).sum(2) if size.dim() > 2 else size for size in sizes)
    slopes = first.sum(1)
    for weight, activation in zip(others, activations, strict=True):
        bound = bound_in(activation, math.inf)
        if not bound.elementwise:
            slopes = slopes.amax().expand(weight.shape[1])
        with full_precision(weight):
            slopes = weight @ (slopes * bound.value)
    return slopes
