"""The interface of a norm that bounds a network as a whole."""

import abc
from collections.abc import Sequence

from torch import Tensor, nn

from flowplug.branch import LipschitzBound


class NetworkNorm(abc.ABC):
    """Measures a network of linear maps with activations between them, and shrinks one that exceeds a bound.

    The layers are not bounded on their own. Weights are matrices ``(out_features, in_features)`` or kernels
    ``(out_channels, in_channels, *kernel)`` of convolutions of stride 1, one more than there are activations, whose own
    bounds, as `flowplug.branch.bound_in` has them, may be trained and count. Both methods are differentiable pure
    functions.

    Example:
        >>> g = LipschitzMLP(3, (64,), norm=PathNorm())
        >>> isinstance(PathNorm(), NetworkNorm)
        True
    """

    @property
    @abc.abstractmethod
    def order(self) -> float:
        """The order of the norm in which inputs, hidden units and outputs are measured."""

    @abc.abstractmethod
    def project(self, weights: Sequence[Tensor], activations: Sequence[nn.Module], bound: float) -> list[Tensor]:
        """Weights of a network whose Lipschitz constant is at most ``bound``."""

    @abc.abstractmethod
    def certify(self, weights: Sequence[Tensor], activations: Sequence[nn.Module]) -> LipschitzBound:
        """The bound of a network with these weights in use."""

    def initialize_(self, weight: Tensor) -> None:
        """Fills a layer's weight in place with random values that suit the norm; here orthogonal rows or columns."""
        nn.init.orthogonal_(weight)
