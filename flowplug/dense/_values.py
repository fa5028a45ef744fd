"""When log|det W| is computed in training; its gradient never depends on it, and in eval mode it is always exact."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flowplug._arguments import require_ints, require_positive
from flowplug._memory import image, without_pattern


class Kept:
    """A value of log|det W| that serves passes after the one it was computed for.

    Attributes:
        value: The value.
        age: How many passes it has served.
    """

    def __init__(self, weight: Tensor, value: Tensor) -> None:
        # What is found in inference mode must serve outside it.
        with torch.inference_mode(mode=False), torch.no_grad():
            self.value, self.age = value.clone(), 1
            self._weight, self._vector = weight, without_pattern(len(weight), weight)
            self._image = image(weight, self._vector)
            self._reach = torch.linalg.vector_norm(self._image) / 2

    @torch.no_grad()
    def serves(self, weight: Tensor) -> bool:
        """Whether W is the same parameter, and nearer to where it was than any few steps would take it."""
        if weight is not self._weight or (weight.dtype, weight.device) != (self._image.dtype, self._image.device):
            return False
        return bool(torch.dist(image(weight, self._vector), self._image) <= self._reach)


class DenseValue(Protocol):
    """Decides when the value is computed anew.

    Example:
        >>> ExactValue().due(1), Deferred(every=3).due(1), Deferred(every=3).due(3)
        (True, False, True)
    """

    def due(self, age: int) -> bool:
        """Whether a value that has served ``age`` forward passes is to be replaced."""


@dataclass(frozen=True)
class ExactValue:
    """At every step, by an LU decomposition in O(D^3).

    Example:
        >>> transform = DenseTransform(3, value=ExactValue())
    """

    def due(self, age: int) -> bool:
        """Always."""
        del age
        return True


@dataclass(frozen=True)
class Deferred:
    """Every so many forward passes in train mode, for large D; the loss shows an old value in between.

    An old value ends before its time where W has moved by about half its norm since (half of what it makes of one
    vector without pattern), and with `load_state_dict`, ``to()``, a change between train and eval mode, or another
    tensor in the place of W.

    Args:
        every: Number of forward passes that share one value, at least 1.

    Raises:
        ShapeError: ``every`` is below 1.

    Example:
        >>> transform = DenseTransform(3, value=Deferred(every=100))
    """

    every: int = 100

    def __post_init__(self) -> None:
        require_ints("Deferred", every=self.every)
        require_positive("Deferred", every=self.every)

    def due(self, age: int) -> bool:
        """Every ``every`` passes."""
        return age >= self.every
