"""nflows' transforms as flowplug transforms."""

from collections.abc import Sequence

from torch import Tensor, nn

import flowplug as fp
from flowplug.hosts import HostTransform, Pair, Shape, check_host, context_width, takes_context
from flowplug_nflows._host import InverseNotAvailable, Transform, flow_classes, of_either
from flowplug_nflows._shapes import event_dim_of, forward_shape, inverse_shape


def from_nflows(
    transform: Transform, *, event_dim: int | None = None, context_features: int | None = None
) -> fp.Transform:
    """An nflows transform as a flowplug transform, and so as one of any other host.

    flowplug's ``forward`` is nflows' ``forward``, data to latent. A ``CompositeTransform`` is taken as a whole; of an
    nflows ``Flow`` pass the transform it was made from. nflows' own classes may change the shape of events.

    Args:
        transform: The nflows transform. It is used, not copied: its parameters train with what it becomes part of.
        event_dim: 1 for vectors, 3 for images ``(C, H, W)``; ``None`` for 3 where a ``SqueezeTransform`` is inside, for
            that of the first transform of flowplug inside, else for 1.
        context_features: Width of the context; ``None`` reads it off the networks of nflows. Needed with networks of
            your own, and 0 keeps the context from a transform that has the argument and cannot use it.

    Raises:
        TypeError: This is no nflows transform; the message names what to call or pass.
        ShapeError: ``event_dim`` does not fit its parts, or when called: a class of your own changes the shape.
        ContextError: It takes no context, or its networks want contexts of different widths.
        InverseNotAvailable: When called, where nflows has no inverse: as for ``BatchNorm`` in train mode.

    Example:
        >>> from nflows.transforms import MaskedAffineAutoregressiveTransform
        >>> transform = from_nflows(MaskedAffineAutoregressiveTransform(2, hidden_features=8, context_features=3))
        >>> y, ladj = transform(torch.randn(5, 2), torch.randn(5, 3))
        >>> y.shape, ladj.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """
    instead = dict.fromkeys(flow_classes(), "a flow: pass the transform it was made from, flow._transform")
    instead |= dict.fromkeys((Sequence, nn.ModuleList), "a list: pass nflows.transforms.CompositeTransform(list)")
    check_host("from_nflows", transform, of_either(Transform), instead)
    name = type(transform).__name__
    width = context_width(transform) if context_features is None else context_features
    if width and not takes_context(transform.forward):
        raise fp.ContextError(f"{name}.forward has no argument context: pass context_features=0, not {width}")
    dims = event_dim_of(transform) if event_dim is None else event_dim
    return NflowsBridge(transform, event_dim=dims, context_features=width)


class NflowsBridge(HostTransform):
    """What `from_nflows` returns."""

    def _to_latent(self, x: Tensor, context: Tensor | None) -> Pair:
        return self._call(self.host, x, context)

    def _to_data(self, y: Tensor, context: Tensor | None) -> Pair:
        try:
            return self._call(self.host.inverse, y, context)
        except of_either(InverseNotAvailable) as error:
            mode = "train" if self.training else "eval"
            raise fp.InverseNotAvailable(
                f"{type(self.host).__name__} of nflows has no inverse in {mode} mode: {error} "
                "(for BatchNorm: call eval() first, or use flowplug.ActNorm in its place)"
            ) from error

    def _forward_shape(self, event: Shape) -> Shape:
        return forward_shape(self.host, event)

    def _inverse_shape(self, latent: Shape) -> Shape:
        return inverse_shape(self.host, latent)
