"""Random numbers that are smooth functions of the row they belong to."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from flowplug._precision import at_least_single

_DIRECTIONS = 8  # projections of a row that its numbers depend on
_TURNS = 80.0  # of a number over the distance of two independent rows, shared by the dimensions that tell rows apart


class Field:
    r"""Numbers that depend on a row's own content alone, not on where in which batch it stands.

    .. math:: \theta_i(x) = w_i^T P h(x) + \phi_i, \qquad h(x) = (x / |x|, \log |x|)

    with Gaussian w and P, and uniform phases :math:`\phi` that make every :math:`\theta_i` uniform on a circle, and any
    two of them independent, at every x. Numbers of rows that differ by more than a twentieth or so of their size are
    close to independent; those of rows that differ by rounding are equal but for rounding, as the two directions of a
    flow need.

    Args:
        x: Rows ``(B, *event)``.
        generator: Draws w, P and the phases: the same ones for all rows, and again from the same seed.
    """

    def __init__(self, x: Tensor, generator: Generator | None) -> None:
        self._generator = generator
        rows = at_least_single(x.detach()).flatten(1)
        # The largest entry first, whose square may overflow.
        largest = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
        rows = rows / largest
        size = rows.square().mean(1, keepdim=True).sqrt().clamp(min=torch.finfo(rows.dtype).eps)
        self._turns = _TURNS / min(rows.shape[1], _DIRECTIONS)
        projections = self._draw(torch.randn, rows, rows.shape[1], _DIRECTIONS) / math.sqrt(rows.shape[1])
        self._coordinates = torch.cat([(rows / size) @ projections, size.log() + largest.log()], dim=1)

    def angles(self, count: int) -> Tensor:
        r"""As many new numbers a row, ``(B, count)``, each uniform modulo :math:`2 \pi`."""
        frequencies = self._turns * self._draw(torch.randn, self._coordinates, self._coordinates.shape[1], count)
        phases = 2 * math.pi * self._draw(torch.rand, self._coordinates, count)
        return self._coordinates @ frequencies + phases

    def waves(self, shape: Sequence[int]) -> Tensor:
        r"""New numbers ``(samples, B, *event)`` of mean 0, variance 1, uncorrelated: :math:`\sqrt 2 \cos \theta`."""
        samples, rows, *event = shape
        angles = self.angles(samples * math.prod(event)).reshape(rows, samples, *event)
        return math.sqrt(2) * angles.cos().transpose(0, 1)

    def _draw(self, draw: object, like: Tensor, *shape: int) -> Tensor:
        # Always in single precision, so that a model has the same noise in either.
        numbers: Tensor = draw(shape, generator=self._generator, dtype=torch.float32, device=like.device)  # type: ignore[operator]
        return numbers.to(like.dtype)
