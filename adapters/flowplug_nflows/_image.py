"""Flows of images for nflows."""

from __future__ import annotations

from torch import Tensor

import flowplug as fp
from flowplug.hosts import latent_sizes, parts_of
from flowplug_nflows._host import CompositeTransform, Flow, StandardNormal
from flowplug_nflows._transform import NflowsTransform


class ImageFlow(Flow):  # type: ignore[misc]
    """A stack for images on a standard normal, in the manner of nflows' ready-made flows.

    Args:
        stack: `flowplug.ImageStack`, `flowplug.PublishedImageStack`, or any other flowplug transform whose latent has a
            known shape. Each part becomes a transform of the flow.

    Raises:
        TypeError: ``stack`` is no flowplug transform.
        ShapeError: The shape of its latent is not known.

    Example:
        >>> flow = ImageFlow(fp.ImageStack((1, 8, 8), transforms=2))
        >>> flow.log_prob(torch.rand(5, 1, 8, 8)).shape, flow.eval().sample(3).shape
        (torch.Size([5]), torch.Size([3, 1, 8, 8]))
    """

    def __init__(self, stack: fp.Transform) -> None:
        sizes = latent_sizes("ImageFlow", stack)
        layers = [NflowsTransform(part) for part in parts_of(stack)]
        super().__init__(CompositeTransform(layers), StandardNormal(sizes))

    def _sample(self, num_samples: int, context: Tensor | None) -> Tensor:
        with fp.no_logdet():  # which nflows throws away
            samples: Tensor = super()._sample(num_samples, context)
        return samples
