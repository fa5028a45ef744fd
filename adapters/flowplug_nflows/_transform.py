"""Any flowplug transform as an nflows transform."""

from __future__ import annotations

from torch import Tensor

import flowplug as fp
from flowplug.hosts import require_instance
from flowplug_nflows._host import InverseNotAvailable, Transform


class NflowsTransform(Transform):  # type: ignore[misc]
    """Any flowplug transform as an nflows transform; ``forward`` maps data to noise.

    Args:
        core: The flowplug transform. An unconditional one ignores any context.

    Example:
        >>> NflowsTransform(fp.ActNorm(2)).forward(torch.randn(5, 2))[1].shape
        torch.Size([5])
    """

    def __init__(self, core: fp.Transform) -> None:
        super().__init__()
        require_instance(type(self).__name__, "core", core, fp.Transform, "flowplug.ActNorm(2)")
        self.core = core

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns outputs and logabsdet ``(B,)``."""
        outputs: tuple[Tensor, Tensor] = self.core(inputs, context)
        return outputs

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns outputs and logabsdet ``(B,)`` of the inverse map.

        Raises:
            InverseNotAvailable: nflows' own, if a numerical inverse did not converge.
        """
        try:
            return self.core.inverse(inputs, context)
        except (fp.NotConverged, fp.InverseNotAvailable) as error:
            raise InverseNotAvailable(str(error)) from error
