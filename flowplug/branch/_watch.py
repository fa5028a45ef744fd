"""A branch that training may carry beyond 1 is measured while it trains."""

from __future__ import annotations

import warnings
from typing import Final

from flowplug._errors import UnboundedBranchWarning
from flowplug.branch._bound import LipschitzBound, require_contraction

_EVERY: Final = 128  # passes, once as many have been counted


class Watch:
    """When to measure the bound of a g in train mode: always, never, or now and then.

    Where no parameters can raise the bound to 1 it is left alone, as its construction vouches for it. Any other is
    measured in passes 1, 2, 4, 8, ..., 128 and every 128th from there on, as reading it makes a GPU wait.

    Attributes:
        kept: Whether the construction keeps the bound below 1; ``None`` before the first measurement.
    """

    def __init__(self) -> None:
        self.kept: bool | None = None
        self._passes = 0

    def due(self) -> bool:
        """Counts a pass in train mode, and says whether to measure the bound in it."""
        return not self.kept and self._count()

    def require_contraction(self, name: str, lipschitz: LipschitzBound) -> None:
        """Refuses a bound that is not below 1, and warns once of one that training may raise.

        Raises:
            LipschitzError: The bound is not below 1, or g ends in another norm than it starts from.
        """
        require_contraction(name, lipschitz)
        if self.kept is not None:
            return
        self.kept = lipschitz.limit < 1
        if not self.kept:
            warnings.warn(
                # Without its value: Python shows a text once for each place, and a flow has many blocks.
                f"nothing keeps the bound of g = {name} below 1 while it trains. It is measured now and then, at least "
                f"every {_EVERY} passes in train mode, and training ends with a LipschitzError once it has reached 1. "
                "The layers of flowplug cannot exceed theirs, and a rule of yours can promise it by "
                "LipschitzBound(value, limit=...)",
                UnboundedBranchWarning,
                stacklevel=3,
            )

    def _count(self) -> bool:
        self._passes += 1
        return self._passes % _EVERY == 0 or (self._passes < _EVERY and self._passes.bit_count() == 1)
