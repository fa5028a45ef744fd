"""What the series estimators share: rows that stop one by one, and one vector a probe that carries the gradient."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from flowplug._branch import Branch, Linearization
from flowplug._noise import Noise
from flowplug.lipschitz._bound import LipschitzBound
from flowplug.logdet._control import Control
from flowplug.logdet._gradients import Gradient
from flowplug.logdet._probes import Probes
from flowplug.logdet._terms import Terms


class Draw(NamedTuple):
    """The randomness of one probe.

    Attributes:
        v: The probe ``(B, *event)``.
        schedule: Weight and number of rows of every term.
        order: The random order ``(B,)`` in which rows stay in the series.
    """

    v: Tensor
    schedule: Iterable[tuple[float, int]]
    order: Tensor


class Solved(NamedTuple):
    r"""What one probe's series comes to.

    Attributes:
        v: The probe ``(B, *event)``.
        u: The vector ``(B, *event)`` with :math:`\nabla \log\det(I + J) \approx u^T (\nabla J) v`.
        known: With ``share``, both ``(B,)``, the value ``known + share * (u^T J v)``: the product with u, which the
            gradient needs anyway, holds the last term.
        share: See ``known``.
    """

    v: Tensor
    u: Tensor
    known: Tensor
    share: Tensor


class Recurrence(abc.ABC):
    r"""A series on the R rows still running, at one of its terms.

    Pairs ``(R, 2)`` hold a part of the value and of :math:`u^T J v`.

    Attributes:
        direction: The vectors ``(R, *event)`` whose products with :math:`J^T` the next term needs.
        u: What this term adds to u, ``(R, *event)``.
        known: The pair this term adds, as far as it is known without the next product.
        waiting: The pair that one unknown number of each row, which is in the next product, is to be multiplied by.
        STATE: Names of the other attributes that have a row each, or are lists of such.
    """

    STATE: ClassVar[tuple[str, ...]]

    direction: Tensor
    u: Tensor
    known: Tensor
    waiting: Tensor

    @property
    @abc.abstractmethod
    def residual(self) -> Tensor:
        """Size ``(R,)`` of what is missing, relative to the probe."""

    @abc.abstractmethod
    def advance(self, product: Tensor) -> Tensor:
        """Moves on to the next term, given ``J^T direction``; returns the pair that waited for it."""

    def keep(self, index: Tensor | slice) -> None:
        """Forgets all rows but those in ``index``."""
        for name in ("direction", "u", "known", "waiting", *self.STATE):  # torch.compile does not follow vars
            value = getattr(self, name)
            if isinstance(value, Tensor):
                setattr(self, name, value[index])
            elif isinstance(value, list):
                setattr(self, name, [item[index] for item in value])


@dataclass(frozen=True)
class SeriesLogDet(abc.ABC):
    """An estimator built from vector-Jacobian products of random probes; subclasses say how they make a series."""

    terms: Terms
    probes: Probes
    gradient: Gradient
    control: Control | None

    def __call__(self, branch: Branch, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """``g(x): (B, *event)`` and the estimate ``(B,)`` in nats."""
        # Apart, so that what is compiled knows how many terms there are; no decorator, which would import the compiler.
        draw = self._draw
        if torch.compiler.is_compiling():
            draw = torch.compiler.disable(draw)  # type: ignore[no-untyped-call]
        return self.gradient(self, branch, x, draw(branch, x, noise))

    def _draw(self, branch: Branch, x: Tensor, noise: Noise) -> list[Draw]:
        """The randomness of every probe."""
        generator, draws = noise.generator(x.device), []
        for v in self.probes.draw(x, generator):
            order = torch.randperm(len(x), generator=generator, device=x.device)
            schedule = self.terms.schedule(len(x), lambda: float(branch.lipschitz_bound()), noise.generator("cpu"))
            draws.append(Draw(v, schedule, order))
        return draws

    def check(self, bound: LipschitzBound) -> None:
        """Warns where the estimate may have infinite variance for a branch with this bound."""
        del bound

    @abc.abstractmethod
    def start(self, v: Tensor) -> Recurrence:
        """The series at its first term, the one with the product :math:`v^T J v`, for probes ``v: (R, *event)``."""

    @torch.no_grad()
    def solve(self, linear: Linearization, draw: Draw, *, first: bool) -> Solved:
        """Sums the series of one probe, with its first term or without."""
        v = draw.v
        order: Tensor | None = draw.order
        state, part = self.start(v), linear
        rows: Tensor | slice = slice(None)
        u, pair, waiting, last = torch.zeros_like(v), v.new_zeros(len(v), 2), v.new_zeros(len(v), 2), 0.0
        for k, (weight, count) in enumerate(draw.schedule, 1):
            index: Tensor | slice | None = None
            if count < len(state.u):
                # Once they are in random order, rows leave from the end.
                index, order = (slice(count) if order is None else order[:count]), None
            elif self.terms.rtol and k > 1:
                left = (state.residual > self.terms.rtol).nonzero().squeeze(1)
                index = left if len(left) < len(state.u) else None
            if index is not None:
                rows = index if isinstance(rows, slice) else rows[index]
                state.keep(index)
                part = part.rows(index)
            if not len(state.u):
                break
            if k > 1:
                pair[rows] += last * state.advance(part.vjp(state.direction))
            if k > 1 or first:
                u[rows] += weight * state.u
                pair[rows] += weight * state.known
                waiting[rows] = state.waiting
                last = weight
        # The waiting number is what the product with u holds beyond the known part.
        value, product = pair.unbind(1)
        share = torch.where(waiting[:, 1] == 0, 0.0, waiting[:, 0] / waiting[:, 1])
        return Solved(v, u, value - share * product, share)
