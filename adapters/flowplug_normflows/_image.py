"""Flows of images for normflows."""

from __future__ import annotations

from normflows import ConditionalNormalizingFlow, NormalizingFlow
from normflows.distributions import DiagGaussian
from torch import nn

import flowplug as fp
from flowplug.hosts import latent_sizes, parts_of, require_part
from flowplug_normflows._transform import NormflowsFlow


def ImageFlow(stack: fp.Transform, *, q0: nn.Module | None = None) -> NormalizingFlow:
    """A stack for images as a ``NormalizingFlow``, or with a context as a ``ConditionalNormalizingFlow``.

    Args:
        stack: `flowplug.ImageStack`, `flowplug.PublishedImageStack`, or any other flowplug transform whose latent has a
            known shape. Each part becomes a `NormflowsFlow`.
        q0: The base distribution; ``None`` for a standard normal, ``DiagGaussian(latent_shape, trainable=False)``.

    Returns:
        The flow, whose ``flows`` go from latent to data.

    Raises:
        TypeError: ``stack`` is no flowplug transform, or ``q0`` no distribution.
        ShapeError: The shape of its latent is not known.

    Example:
        >>> flow = ImageFlow(fp.ImageStack((1, 8, 8), transforms=2))
        >>> flow.log_prob(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5])
    """
    if q0 is not None:
        require_part("ImageFlow", "q0", q0, "log_prob", "a distribution of normflows, or None")
    sizes = latent_sizes("ImageFlow", stack)
    flows = [NormflowsFlow(part) for part in reversed(parts_of(stack))]
    base = DiagGaussian(sizes, trainable=False) if q0 is None else q0
    return (ConditionalNormalizingFlow if stack.context_features else NormalizingFlow)(base, flows)
