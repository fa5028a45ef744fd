"""The base distribution of flows on images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from zuko.distributions import DiagNormal
from zuko.lazy import UnconditionalDistribution

from flowplug.hosts import as_shape, require_positive, require_shape


class StandardNormal(UnconditionalDistribution):  # type: ignore[misc]
    """Creates a lazy standard normal distribution of events of any number of dimensions.

    Args:
        event_shape: Width of the events, or their shape, e.g. ``(C, H, W)``.

    Raises:
        ShapeError: A size is below 1.

    Example:
        >>> base = StandardNormal((1, 8, 8))
        >>> base().sample((5,)).shape, base().log_prob(torch.randn(5, 1, 8, 8)).shape
        (torch.Size([5, 1, 8, 8]), torch.Size([5]))
    """

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        require_shape("StandardNormal", event_shape=event_shape)
        require_positive("StandardNormal", event_shape=event_shape)
        shape = as_shape(event_shape)
        super().__init__(DiagNormal, torch.zeros(shape), torch.ones(shape), ndims=len(shape), buffer=True)
