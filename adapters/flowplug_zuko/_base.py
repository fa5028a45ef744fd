"""Base distributions that zuko lacks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Independent, Normal
from zuko.lazy import UnconditionalDistribution

from flowplug.hosts import require_positive, require_sizes


def _standard_normal(loc: Tensor, scale: Tensor) -> Independent[Normal]:
    return Independent(Normal(loc, scale), loc.dim())


class StandardNormal(UnconditionalDistribution):  # type: ignore[misc]
    """Creates a lazy standard normal on events of any shape, as images; that of zuko is one on vectors.

    Args:
        event_shape: Sizes of the events, e.g. ``(C, H, W)``.

    Raises:
        ShapeError: A size is below 1.

    Example:
        >>> StandardNormal((1, 8, 8))().log_prob(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5])
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        require_sizes("StandardNormal", event_shape=event_shape)
        require_positive("StandardNormal", event_shape=event_shape)
        super().__init__(_standard_normal, torch.zeros(*event_shape), torch.ones(*event_shape), buffer=True)
