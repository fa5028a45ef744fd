"""Where a square matrix starts. Any function that fills a tensor in place will do, such as those of `torch.nn.init`."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowplug._arguments import require_numbers


@dataclass(frozen=True)
class ScaledIdentity:
    r"""A multiple of the identity, :math:`W = s I`.

    Args:
        scale: The factor s, finite and not 0.

    Raises:
        ValueError: ``scale`` is 0 or not finite.

    Example:
        >>> DenseTransform(2, activation=None, init=ScaledIdentity(0.5))(torch.ones(2))[0]
        tensor([0.5000, 0.5000], grad_fn=<ViewBackward0>)
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        require_numbers("ScaledIdentity", scale=self.scale)
        if self.scale == 0 or not math.isfinite(self.scale):
            raise ValueError(f"ScaledIdentity(scale=...) must be finite and not 0; got {self.scale}")

    @torch.no_grad()
    def __call__(self, weight: Tensor) -> None:
        """Fills ``weight``, ``(D, D)``, in place."""
        torch.nn.init.eye_(weight).mul_(self.scale)
