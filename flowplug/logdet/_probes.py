r"""Random vectors with :math:`E[v v^T] = I`, for which :math:`E[v^T A v] = \operatorname{tr} A`."""

import abc
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from flowplug._arguments import require_ints
from flowplug._precision import at_least_single
from flowplug.logdet._field import Field


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

    def follow(self, x: Tensor, field: Field, generator: Generator | None) -> Tensor:
        """Probes ``(samples, *x.shape)`` that are functions of the rows ``x: (B, *event)``, for eval mode.

        Here one draw for all rows; the probes of flowplug take from the ``field`` numbers that differ from row to row,
        so that the noise of a mean over rows shrinks with their number.
        """
        del field
        return self.draw(x.detach()[:1], generator).expand(-1, *x.shape) if len(x) else self.draw(x, generator)


@dataclass(frozen=True)
class Rademacher(Probes):
    """Independent signs: the lowest variance among probes with independent entries.

    Example:
        >>> Rademacher(samples=2).draw(torch.zeros(5, 3), None).shape
        torch.Size([2, 5, 3])
    """

    def draw(self, like: Tensor, generator: Generator | None) -> Tensor:
        """Entries -1 and 1."""
        bits = torch.randint(2, (self.samples, *like.shape), device=like.device, **_from(generator))
        return bits.to(like.dtype) * 2 - 1

    def follow(self, x: Tensor, field: Field, generator: Generator | None) -> Tensor:
        r"""Entries :math:`\sqrt 2 \cos \theta`, as signs would jump."""
        del generator
        return _waves(self, x, field)


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
        return torch.randn(shape, dtype=like.dtype, device=like.device, **_from(generator))

    def follow(self, x: Tensor, field: Field, generator: Generator | None) -> Tensor:
        r"""Entries :math:`\sqrt 2 \cos \theta`, of less variance than normal ones."""
        del generator
        return _waves(self, x, field)


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
        rows, size = self._sizes(like)
        shape = (rows, size, self.samples)
        frames = torch.randn(shape, dtype=like.dtype, device=like.device, **_from(generator))
        return self._orthogonal(frames, like)

    def follow(self, x: Tensor, field: Field, generator: Generator | None) -> Tensor:
        r"""Frames from entries :math:`\sqrt 2 \cos \theta`."""
        del generator
        rows, size = self._sizes(x)
        return self._orthogonal(field.waves((self.samples, rows, size)).permute(1, 2, 0), x)

    def _sizes(self, x: Tensor) -> tuple[int, int]:
        rows, size = x.flatten(1).shape
        if self.samples > size:
            raise ValueError(
                f"Orthogonal(samples={self.samples}) needs events of as many dimensions; these have {size}"
            )
        return rows, size

    def _orthogonal(self, frames: Tensor, like: Tensor) -> Tensor:
        """Of the columns of ``frames: (B, D, samples)``."""
        basis: Tensor = torch.linalg.qr(at_least_single(frames))[0]
        probes = math.sqrt(basis.shape[1]) * basis.permute(2, 0, 1)
        return probes.reshape(self.samples, *like.shape).to(like.dtype)


def _from(generator: Generator | None) -> dict[str, Any]:
    """The keyword, left out where torch's own is meant: the compiler takes ``None`` for no batch of any size."""
    return {} if generator is None else {"generator": generator}


def _waves(probes: Probes, x: Tensor, field: Field) -> Tensor:
    return field.waves((probes.samples, *x.shape)).to(x.dtype)
