"""zuko's lazy transforms as flowplug transforms."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributions, nn
from zuko.lazy import Flow, LazyDistribution, LazyTransform

import flowplug as fp
from flowplug.hosts import HostTransform, Pair, Shape, check_host
from flowplug_zuko._shapes import event_dim_of, forward_shape, inverse_shape

_INSTEAD: dict[type, str] = {
    Flow: "a flow: pass flow.transform",
    LazyDistribution: "a distribution: pass the transform in front of it",
    distributions.Distribution: "a distribution: pass flow.transform of the flow that returned it",
    distributions.Transform: "a transform that is not lazy: pass UnconditionalTransform(RotationTransform, A) for "
    "RotationTransform(A), or flow.transform of the flow that returned it",
    Sequence: "a list: pass zuko.lazy.LazyComposedTransform(*list)",
    nn.ModuleList: "a list: pass zuko.lazy.LazyComposedTransform(*list)",
}


def from_zuko(transform: LazyTransform, *, event_dim: int | None = None, context_features: int = 0) -> fp.Transform:
    """A lazy transform of zuko as a flowplug transform, and so as one of any other host.

    flowplug's ``forward`` is the call of zuko's transform, data to latent. Of a zuko ``Flow`` pass its ``transform``;
    an eager transform as ``UnconditionalTransform(RotationTransform, A)``, which holds its parameters.

    Args:
        transform: The lazy transform. It is used, not copied: its parameters train with what it becomes part of.
        event_dim: 1 for vectors, 3 for images ``(C, H, W)``; element-wise log-dets are summed over them. ``None`` for
            that of a first ``UnconditionalTransform`` or `ZukoTransform`, else for 1.
        context_features: Width of the context the transform was made for.

    Raises:
        TypeError: This is no lazy transform; the message names what to call or pass.
        ShapeError: When called: the transform needs more event dimensions, or changes the shape of events and is no
            ``ReshapeTransform``.
        ContextError: When called: the context is missing, or has the wrong width.
        InverseNotAvailable: When called, where the transform is no bijection.

    Example:
        >>> from zuko.flows import NSF
        >>> transform = from_zuko(NSF(2, context=3, transforms=1).transform, context_features=3)
        >>> y, ladj = transform(torch.randn(5, 2), torch.randn(5, 3))
        >>> y.shape, ladj.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """
    check_host("from_zuko", transform, LazyTransform, _INSTEAD)
    dims = event_dim_of(transform) if event_dim is None else event_dim
    return ZukoBridge(transform, event_dim=dims, context_features=context_features)


class ZukoBridge(HostTransform):
    """What `from_zuko` returns."""

    def _to_latent(self, x: Tensor, context: Tensor | None) -> Pair:
        return self._pair(self.host(context), x, self.event_dim)

    def _to_data(self, y: Tensor, context: Tensor | None) -> Pair:
        return self._pair(self.host(context).inv, y, self.latent_dim)

    def _forward_shape(self, event: Shape) -> Shape:
        return forward_shape(self.host, event)

    def _inverse_shape(self, latent: Shape) -> Shape:
        return inverse_shape(self.host, latent)

    def _pair(self, transform: Any, x: Tensor, event_dim: int) -> Pair:  # noqa: ANN401 -- torch's type lacks zuko's method
        dim = transform.domain.event_dim
        if dim > event_dim:
            raise fp.ShapeError(f"{type(self.host).__name__} maps events of {dim} dimensions: pass event_dim={dim}")
        try:
            y, ladj = transform.call_and_ladj(x)
        except NotImplementedError as error:
            raise fp.InverseNotAvailable(f"{type(transform).__name__} is no bijection, or has no log-det") from error
        if not torch.is_grad_enabled():  # zuko's monotonic networks build a graph in any mode
            y, ladj = y.detach(), ladj.detach()
        # Dimensions that the transform treats as independent are kept for the sum.
        return y, ladj.expand(x.shape[: x.dim() - dim])
