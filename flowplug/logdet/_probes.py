r"""Random vectors with :math:`E[v v^T] = I`, for which :math:`E[v^T A v] = \operatorname{tr} A`."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor


class Probes(Protocol):
    """Draws the vectors of Hutchinson's trace estimator."""

    @property
    def samples(self) -> int:
        """Number of probes per sample."""

    def draw(self, like: Tensor, generator: Generator | None) -> Tensor:
        """Probes ``(samples, *like.shape)`` in the dtype and on the device of ``like``."""


def _check_samples(name: str, samples: int) -> None:
    if samples < 1:
        raise ValueError(f"{name}(samples=...) must be at least 1; got {samples}")


@dataclass(frozen=True)
class Rademacher:
    """Independent signs: the lowest variance among probes with independent entries.

    Args:
        samples: Number of probes per sample; cost grows and variance shrinks in proportion.

    Raises:
        ValueError: ``samples`` is below 1.
    """

    samples: int = 1

    def __post_init__(self) -> None:
        _check_samples("Rademacher", self.samples)

    def draw(self, like: Tensor, generator: Generator | None) -> Tensor:
        """Entries -1 and 1."""
        bits = torch.randint(2, (self.samples, *like.shape), generator=generator, device=like.device)
        return bits.to(like.dtype) * 2 - 1


@dataclass(frozen=True)
class Gaussian:
    """Standard normal entries, as in the published code.

    Args:
        samples: Number of probes per sample; cost grows and variance shrinks in proportion.

    Raises:
        ValueError: ``samples`` is below 1.
    """

    samples: int = 1

    def __post_init__(self) -> None:
        _check_samples("Gaussian", self.samples)

    def draw(self, like: Tensor, generator: Generator | None) -> Tensor:
        """Standard normal entries."""
        shape = (self.samples, *like.shape)
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
