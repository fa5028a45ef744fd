"""A series of products at one of its terms, and what one probe's series starts from and comes to."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import ClassVar, NamedTuple

from torch import Tensor


class Draw(NamedTuple):
    """The randomness of one probe.

    Attributes:
        v: The probe ``(B, *event)``.
        schedule: Weight and number of rows of every term.
        permutation: The random order ``(B,)`` in which rows stay in the series.
    """

    v: Tensor
    schedule: Iterable[tuple[float, int]]
    permutation: Tensor


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
        vector: The vectors ``(R, *event)`` whose products with :math:`J^T` the next term needs.
        u: What this term adds to u, ``(R, *event)``.
        known: The pair this term adds, as far as it is known without the next product.
        waiting: The pair that one unknown number of each row, which is in the next product, is to be multiplied by.
        STATE: Names of the other attributes that have a row each, or are lists of such.
    """

    STATE: ClassVar[tuple[str, ...]]

    vector: Tensor
    u: Tensor
    known: Tensor
    waiting: Tensor

    @property
    @abc.abstractmethod
    def residual(self) -> Tensor:
        """Size ``(R,)`` of what is missing, relative to the probe."""

    @abc.abstractmethod
    def advance(self, product: Tensor) -> Tensor:
        """Moves on to the next term, given ``J^T vector``; returns the pair that waited for it."""

    def keep(self, index: Tensor | slice) -> None:
        """Forgets all rows but those in ``index``."""
        for name in ("vector", "u", "known", "waiting", *self.STATE):  # torch.compile does not follow vars
            value = getattr(self, name)
            if isinstance(value, Tensor):
                setattr(self, name, value[index])
            elif isinstance(value, list):
                setattr(self, name, [item[index] for item in value])
