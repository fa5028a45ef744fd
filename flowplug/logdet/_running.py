"""The rows of a series that have not stopped."""

from __future__ import annotations

from torch import Tensor

from flowplug.branch import Linearization
from flowplug.logdet._recurrence import Recurrence


class Running:
    """A series on the rows that have not stopped.

    Attributes:
        state: The series on these rows.
        rows: Where they stand in the batch.
    """

    state: Recurrence
    rows: Tensor | slice
    _permutation: Tensor | None

    def __init__(self, state: Recurrence, linear: Linearization, permutation: Tensor) -> None:
        self.state, self.rows = state, slice(None)
        self._linear, self._permutation = linear, permutation

    def release(self, count: int, rtol: float) -> None:
        """Lets rows stop: all but ``count`` at random or, with an ``rtol``, those whose residual is at most this."""
        index: Tensor | slice | None = None
        if count < len(self.state.u):
            # Once they are in random order, rows leave from the end.
            index = slice(count) if self._permutation is None else self._permutation[:count]
            self._permutation = None
        elif rtol:
            left = (self.state.residual > rtol).nonzero().squeeze(1)
            index = left if len(left) < len(self.state.u) else None
        if index is not None:
            self.rows = index if isinstance(self.rows, slice) else self.rows[index]
            self.state.keep(index)
            self._linear = self._linear.select(index)

    def advance(self) -> Tensor:
        """The next term; the pair that waited for it."""
        return self.state.advance(self._linear.vjp(self.state.vector))
