r"""Random vectors with :math:`E[v v^T] = I`, for which :math:`E[v^T A v] = \operatorname{tr} A`."""

import abc
import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from flowplug._arguments import require_ints


@dataclass(frozen=True)
class Probes(abc.ABC):
    """The vectors of Hutchinson's trace estimator.

    Args:
        samples: Number of probes per sample; cost grows and variance shrinks in proportion.

    Raises:
        ValueError: ``samples`` is below 1.

    Example:
        >>> isinstance(Rademacher(samples=4), Probes)
        True
    """

    samples: int = 1

    def __post_init__(self) -> None:
        require_ints(type(self).__name__, samples=self.samples)
        if self.samples < 1:
            raise ValueError(f"{type(self).__name__}(samples=...) must be at least 1; got {self.samples}")

    @abc.abstractmethod
    def draw(self, like: Tensor, generator: Generator | None) -> Tensor:
        """Probes ``(samples, *like.shape)`` in the dtype and on the device of ``like``."""


@dataclass(frozen=True)
class Rademacher(Probes):
    """Independent signs: the lowest variance among probes with independent entries.

    Example:
        >>> Rademacher(samples=2).draw(torch.zeros(5, 3), None).shape
        torch.Size([2, 5, 3])
    """

    def draw(self, like: Tensor, generator: Generator | None) -> Tensor:
        """Entries -1 and 1."""
        bits = torch.randint(2, (self.samples, *like.shape), generator=generator, device=like.device)
        return bits.to(like.dtype) * 2 - 1


@dataclass(frozen=True)
class Gaussian(Probes):
    """Standard normal entries, as in the published code.

    Example:
        >>> Gaussian().draw(torch.zeros(5, 3), None).shape
        torch.Size([1, 5, 3])
    """

    def draw(self, like: Tensor, generator: Generator | None) -> Tensor:
        """Standard normal entries."""
        shape = (self.samples, *like.shape)
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Orthogonal(Probes):
    r"""Probes of one sample at right angles to each other, of length :math:`\sqrt{D}`; D of them give the exact trace.

    The variance of S probes is :math:`(D - S) / (D - 1)` times that of S independent ones in random directions. These
    have more than `Rademacher` probes, which know the diagonal exactly, so that orthogonality pays for S close to D
    alone (docs/benchmarks.md, "What orthogonal probes are worth").

    Raises:
        ValueError: ``samples`` is below 1, or above the dimension D of the events.

    Example:
        >>> v = Orthogonal(samples=2).draw(torch.zeros(5, 3), None)
        >>> torch.allclose((v[0] * v[1]).sum(1), torch.zeros(5), atol=1e-5)
        True
    """

    def draw(self, like: Tensor, generator: Generator | None) -> Tensor:
        """Uniformly random orthogonal frames."""
        flat = like.flatten(1)
        rows, size = flat.shape
        if self.samples > size:
            raise ValueError(
                f"Orthogonal(samples={self.samples}) needs events of as many dimensions; these have {size}"
            )
        shape = (rows, size, self.samples)
        frames = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
        basis: Tensor = torch.linalg.qr(frames)[0]
        return math.sqrt(size) * basis.permute(2, 0, 1).reshape(self.samples, *like.shape)
