"""When log|det W| is computed in training; its gradient never depends on it, and in eval mode it is always exact."""

from dataclasses import dataclass
from typing import Protocol


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

    Args:
        every: Number of forward passes that share one value, at least 1.

    Raises:
        ValueError: ``every`` is below 1.

    Example:
        >>> transform = DenseTransform(3, value=Deferred(every=100))
    """

    every: int = 100

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"Deferred(every=...) must be at least 1; got {self.every}")

    def due(self, age: int) -> bool:
        """Every ``every`` passes."""
        return age >= self.every
