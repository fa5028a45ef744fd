"""One bound for a whole network: the sum over the paths from its inputs to an output."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn

from flowplug.lipschitz._activations import Activation
from flowplug.lipschitz._bound import LipschitzBound, bound_in
from flowplug.lipschitz._norms import InfNorm, OperatorNorm, full_precision

ELEMENTWISE: Final = (
    Activation,
    *(nn.ELU, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid, nn.PReLU, nn.ReLU),
    *(nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Softsign, nn.Tanh),
)


@dataclass(frozen=True)
class Unlimited(InfNorm):
    """The norm of a layer whose network is bounded as a whole: the layer itself is not."""

    def project(self, weight: Tensor, bound: float) -> Tensor:
        """The weight as it is."""
        del bound
        return weight


@dataclass(frozen=True)
class PathNorm(InfNorm):
    r"""The inf-norm of a network bounded as a whole instead of layer by layer: exact sums, no state, O(size).

    .. math:: |g|_\infty \le \max_i \big(|W_n| \cdots |W_1| \mathbf 1\big)_i,
        \qquad \hat W_n = \operatorname{diag}\big(\min(1, c / (|W_n| \cdots |W_1| \mathbf 1))\big) W_n

    with 1-Lipschitz element-wise activations between the layers and :math:`|W|` entry by entry. Only the rows of the
    last layer are shrunk. Since :math:`r_l = |W_l| r_{l-1}` bounds the slope of each hidden unit on its own, the bound
    is never above the product of the layers' inf-norms, which takes every unit for the steepest, and hidden units are
    free to be steep or flat. Behind an activation that mixes its inputs, or is not known to treat each on its own, all
    units count as the steepest. For a single layer, or one layer of a list of norms, it is `InfNorm`.

    Reference: the norm is that of Neyshabur, Tomioka, Srebro, "Norm-Based Capacity Control in Neural Networks", COLT
    2015, per output.

    Example:
        >>> g = LipschitzMLP(3, (64,), norm=PathNorm(), bound=0.9)
        >>> bool(lipschitz_bound(g).value < 0.9001)
        True
    """

    def chain(self, count: int) -> Sequence[OperatorNorm]:
        """Layers that bound nothing on their own."""
        return [Unlimited()] * count

    def project_network(
        self, weights: Sequence[Tensor], activations: Sequence[nn.Module], bound: float
    ) -> list[Tensor]:
        """The weights with every row of the last one shrunk until its paths sum to ``bound`` or less."""
        *hidden, last = weights
        slopes = _slopes(weights, activations)
        return [*hidden, last * (bound / slopes.clamp(min=bound)).reshape(-1, *[1] * (last.dim() - 1))]

    def certify_network(self, weights: Sequence[Tensor], activations: Sequence[nn.Module]) -> LipschitzBound:
        """The bound of a network with these weights in use."""
        return LipschitzBound(_slopes(weights, activations).amax(), math.inf)


def _slopes(weights: Sequence[Tensor], activations: Sequence[nn.Module]) -> Tensor:
    """Bounds on the slopes of all outputs, ``(out,)``."""
    first, *others = (weight.abs().flatten(2).sum(2) if weight.dim() > 2 else weight.abs() for weight in weights)
    slopes = first.sum(1)
    for weight, activation in zip(others, activations, strict=True):
        if not isinstance(activation, ELEMENTWISE):
            slopes = slopes.amax().expand(weight.shape[1])
        with full_precision(weight):
            slopes = weight @ (slopes * bound_in(activation, math.inf).value)
    return slopes
