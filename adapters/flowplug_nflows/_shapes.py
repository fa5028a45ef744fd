"""What nflows' transforms make of the shape of events."""

import math
from functools import reduce

from torch import nn

import flowplug as fp
from flowplug.hosts import Shape
from flowplug_nflows._host import (
    CompositeTransform,
    InverseTransform,
    MultiscaleCompositeTransform,
    SqueezeTransform,
    Transform,
    of_either,
)
from flowplug_nflows._transform import NflowsTransform


def event_dim_of(transform: nn.Module) -> int:
    """3 for what squeezes images, that of a first transform of flowplug, else 1."""
    for part in transform.modules():
        if isinstance(part, of_either(SqueezeTransform)):
            return 3
        if isinstance(part, NflowsTransform):
            return part.core.event_dim
    return 1


def forward_shape(transform: Transform, event: Shape) -> Shape:
    """The sizes of the latent, ``None`` where unknown; what is no class of nflows keeps the shape."""
    if isinstance(transform, NflowsTransform):
        return transform.core.forward_shape(event)
    if isinstance(transform, of_either(CompositeTransform)):
        return reduce(lambda sizes, part: forward_shape(part, sizes), transform._transforms, event)
    if isinstance(transform, of_either(InverseTransform)):
        return inverse_shape(transform._transform, event)
    if isinstance(transform, of_either(MultiscaleCompositeTransform)):
        return (sum(map(math.prod, transform._output_shapes)),)
    return (
        fp.Squeeze(transform.factor).forward_shape(event)
        if isinstance(transform, of_either(SqueezeTransform))
        else event
    )


def inverse_shape(transform: Transform, latent: Shape) -> Shape:
    """The sizes of an event, likewise."""
    if isinstance(transform, NflowsTransform):
        return transform.core.inverse_shape(latent)
    if isinstance(transform, of_either(CompositeTransform)):
        return reduce(lambda sizes, part: inverse_shape(part, sizes), reversed(transform._transforms), latent)
    if isinstance(transform, of_either(InverseTransform)):
        return forward_shape(transform._transform, latent)
    if isinstance(transform, of_either(MultiscaleCompositeTransform)):
        return _before_scales(transform)
    return (
        fp.Squeeze(transform.factor).inverse_shape(latent)
        if isinstance(transform, of_either(SqueezeTransform))
        else latent
    )


def _before_scales(transform: MultiscaleCompositeTransform) -> Shape:
    *scales, last = zip(transform._transforms, transform._output_shapes, strict=True)
    at = transform._split_dim - 1
    sizes = inverse_shape(last[0], tuple(last[1]))
    for scale, out in reversed(scales):
        whole = None if sizes[at] is None else sizes[at] + out[at]
        sizes = inverse_shape(scale, (*out[:at], whole, *out[at + 1 :]))
    return sizes
