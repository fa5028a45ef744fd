"""What zuko's lazy transforms make of the shape of events."""

from functools import reduce

from torch.distributions import ReshapeTransform
from zuko.lazy import LazyComposedTransform, LazyInverse, LazyTransform, UnconditionalTransform

import flowplug as fp
from flowplug.hosts import Shape
from flowplug_zuko._transform import ZukoTransform


def event_dim_of(transform: LazyTransform) -> int:
    """That of a first unconditional transform of zuko or of one of flowplug, else 1."""
    if isinstance(transform, LazyComposedTransform):
        return event_dim_of(transform.transforms[0])
    if isinstance(transform, ZukoTransform):
        return transform.core.event_dim
    return max(1, transform().domain.event_dim) if isinstance(transform, UnconditionalTransform) else 1


def forward_shape(transform: LazyTransform, event: Shape) -> Shape:
    """The sizes of the latent, ``None`` where unknown; what does not reshape keeps the shape."""
    if isinstance(transform, ZukoTransform):
        return transform.core.forward_shape(event)
    if isinstance(transform, LazyComposedTransform):
        return reduce(lambda sizes, part: forward_shape(part, sizes), transform.transforms, event)
    if isinstance(transform, LazyInverse):
        return inverse_shape(transform.transform, event)
    like = _like(transform)
    return event if like is None else _last(like.event_dim, event, like.forward_shape(event[-like.event_dim :]))


def inverse_shape(transform: LazyTransform, latent: Shape) -> Shape:
    """The sizes of an event, likewise."""
    if isinstance(transform, ZukoTransform):
        return transform.core.inverse_shape(latent)
    if isinstance(transform, LazyComposedTransform):
        return reduce(lambda sizes, part: inverse_shape(part, sizes), reversed(transform.transforms), latent)
    if isinstance(transform, LazyInverse):
        return forward_shape(transform.transform, latent)
    like = _like(transform)
    return latent if like is None else _last(like.latent_dim, latent, like.inverse_shape(latent[-like.latent_dim :]))


def _like(transform: LazyTransform) -> fp.Transform | None:
    """What flowplug calls a transform that is nothing but another shape."""
    if isinstance(transform, UnconditionalTransform) and transform.f is ReshapeTransform:
        built = transform()
        return fp.Reshape(built.in_shape, built.out_shape)
    return None


def _last(dims: int, sizes: Shape, changed: Shape) -> Shape:
    return (*sizes[: len(sizes) - dims], *changed)
