"""Operator norms as strategies of a layer: how its weight is measured and kept within a bound."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from torch import Tensor, nn

from flowplug._reading import hidden, refuse_vmap
from flowplug.branch import LipschitzBound


class OperatorNorm(abc.ABC):
    """Measures linear maps in one induced norm, from above, and shrinks those that exceed a bound.

    A weight is a matrix ``(out_features, in_features)`` or the kernel ``(out_channels, in_channels, *kernel)`` of a
    convolution of stride 1, whose bound holds for images of every size. Both methods are differentiable, and pure
    functions of the weight unless the norm says otherwise.

    Example:
        >>> class Frobenius(OperatorNorm):
        ...     def orders(self):
        ...         return 2.0, 2.0
        ...     def measure(self, weight):
        ...         return torch.linalg.vector_norm(weight)
        >>> layer = LipschitzLinear(3, 4, bound=0.9, norm=Frobenius())
        >>> bool(layer.bounded_weight().norm() < 0.9001)
        True
    """

    @abc.abstractmethod
    def orders(self) -> tuple[float | Tensor, float | Tensor]:
        """The orders p and q of the norms of inputs and outputs: floats or, where trained, scalar tensors."""

    @abc.abstractmethod
    def measure(self, weight: Tensor) -> Tensor:
        """An upper bound on the induced norm, a scalar tensor; with a finite gradient at 0, where layers may start."""

    def project(self, weight: Tensor, bound: float) -> Tensor:
        """A weight of norm at most ``bound``, by its scale; the identity where the weight already fits."""
        return weight * (bound / self.measure(weight).clamp(min=bound))

    def project_all(self, weights: Sequence[Tensor], bounds: Sequence[float]) -> list[Tensor]:
        """The same for several weights, each with its bound, where it pays together."""
        return [self.project(weight, bound) for weight, bound in zip(weights, bounds, strict=True)]

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


def _number(order: float | Tensor) -> float:
    if not isinstance(order, Tensor):
        return order
    if hidden(order):
        refuse_vmap("the learned order of a norm is read", "map over x alone, or use a norm of fixed order")
    return float(order.detach())
