"""Any flowplug transform as a normflows flow."""

from __future__ import annotations

from normflows.flows import Flow
from torch import Tensor

import flowplug as fp
from flowplug.hosts import require_bools, require_instance


class NormflowsFlow(Flow):  # type: ignore[misc]
    """Any flowplug transform as a normflows flow.

    Args:
        core: The flowplug transform, data to latent. An unconditional one ignores any context.
        reverse: If true, as in normflows' ``Residual``, density evaluation (normflows' ``inverse``) is the cheap
            direction; if false, sampling (``forward``) is.

    Example:
        >>> NormflowsFlow(fp.ActNorm(2)).inverse(torch.randn(5, 2))[1].shape
        torch.Size([5])
    """

    def __init__(self, core: fp.Transform, *, reverse: bool = True) -> None:
        super().__init__()
        require_instance(type(self).__name__, "core", core, fp.Transform, "flowplug.ActNorm(2)")
        require_bools(type(self).__name__, reverse=reverse)
        self.core, self.reverse = core, reverse

    def extra_repr(self) -> str:
        """Names the direction that is not the default."""
        return "" if self.reverse else "reverse=False"

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps latent to data; returns the log-det ``(B,)`` of that map."""
        outputs: tuple[Tensor, Tensor] = self.core.inverse(z, context) if self.reverse else self.core(z, context)
        return outputs

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps data to latent; returns the log-det ``(B,)`` of that map."""
        outputs: tuple[Tensor, Tensor] = self.core(z, context) if self.reverse else self.core.inverse(z, context)
        return outputs
