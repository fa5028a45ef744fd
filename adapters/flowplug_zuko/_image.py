"""Flows of images for zuko."""

from __future__ import annotations

from zuko.lazy import Flow

import flowplug as fp
from flowplug.hosts import latent_sizes, parts_of
from flowplug_zuko._base import StandardNormal
from flowplug_zuko._transform import ZukoTransform


class ImageFlow(Flow):  # type: ignore[misc]
    """Creates a flow on a standard normal from a stack for images, in the manner of zuko's ready-made flows.

    Args:
        stack: `flowplug.ImageStack`, `flowplug.PublishedImageStack`, or any other flowplug transform whose latent has a
            known shape. Each part becomes a lazy transform of the flow.

    Raises:
        TypeError: ``stack`` is no flowplug transform.
        ShapeError: The shape of its latent is not known.

    Example:
        >>> flow = ImageFlow(fp.ImageStack((1, 8, 8), transforms=2, context_features=10))
        >>> flow(torch.zeros(10)).log_prob(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5])
    """

    def __init__(self, stack: fp.Transform) -> None:
        sizes = latent_sizes("ImageFlow", stack)
        super().__init__([ZukoTransform(part) for part in parts_of(stack)], StandardNormal(sizes))
