"""Several scales, each of which leaves half of its channels as they are from there on."""

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from flowplug._arguments import require_positive, require_sizes
from flowplug._composition import Call, Composition, require_transforms, shared_context
from flowplug._errors import ShapeError
from flowplug._transform import Shape, Transform


class MultiscaleTransform(Composition):
    r"""Transforms one after the other, behind each of which but the last half of the channels is factored out.

    .. math:: (z_1, h_1) = f_1(x), \quad (z_2, h_2) = f_2(h_1), \quad \dots, \quad z_n = f_n(h_{n-1}), \qquad
        y = (z_1, \dots, z_n)

    z is the first half of the channels, and of an odd number of them one more than h. The latent is a vector ``(D,)``:
    the entries of z_1, of z_2, ..., as in the ``MultiscaleCompositeTransform`` of nflows.

    Reference: Dinh, Sohl-Dickstein, Bengio, "Density Estimation Using Real NVP", ICLR 2017, section 3.6.

    Args:
        scales: The transforms f, in data-to-latent order, most often a `ComposedTransform` each that begins with a
            `Squeeze`. Conditional ones share the context.
        event_shape: Sizes of the events, ``(C, H, W)``; ``None`` where the first scale knows them all.

    Raises:
        ShapeError: There are no scales, sizes of events are not known, a scale takes other events than are left for it,
            or there is one channel only to be halved.
        ContextError: Conditional scales disagree on the width of the context.

    Example:
        >>> def scale(channels):
        ...     return ComposedTransform(Squeeze(2), ActNorm(4 * channels, event_dim=3))
        >>> flow = MultiscaleTransform(scale(1), scale(2), event_shape=(1, 8, 8))
        >>> flow(torch.randn(5, 1, 8, 8))[0].shape
        torch.Size([5, 64])
    """

    event_shape: tuple[int, ...]

    def __init__(self, *scales: Transform, event_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        require_transforms("MultiscaleTransform", scales)
        self.scales = nn.ModuleList(scales)
        self.context_features = shared_context("MultiscaleTransform", scales)
        if event_shape is not None:
            require_sizes("MultiscaleTransform", event_shape=event_shape)
            require_positive("MultiscaleTransform", event_shape=event_shape)
        sizes = scales[0].event_shape if event_shape is None else tuple(event_shape)
        if sizes is None or None in sizes:
            raise ShapeError(
                f"MultiscaleTransform needs the sizes of its events: pass event_shape=(C, H, W); of {sizes} not all "
                "are known"
            )
        self.event_shape = cast(tuple[int, ...], sizes)
        self.event_dim = len(self.event_shape)
        self._kept: list[tuple[int, ...]] = []  # the sizes of each z
        for number, scale in enumerate(scales, 1):
            out = _returned(number, scale, sizes)
            last = number == len(scales)
            if not last and out[0] < 2:
                raise ShapeError(f"MultiscaleTransform: scale {number} returns one channel, {out}, which has no half")
            self._kept.append(out if last else ((out[0] + 1) // 2, *out[1:]))
            sizes = (out[0] // 2, *out[1:])

    @property
    def latent_dim(self) -> int:
        """One, as the latent is a vector."""
        return 1

    def _through(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        batch = x.shape[: x.dim() - self.event_dim]
        total, kept = x.new_zeros(batch), []
        for (name, scale), sizes in zip(self._parts(), self._kept, strict=True):
            x, ladj = call(name, scale, x)
            total = total + ladj
            first, x = x.tensor_split([sizes[0]], dim=-len(sizes))
            kept.append(first.reshape(*batch, math.prod(sizes)))
        return torch.cat(kept, dim=-1), total

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        batch = y.shape[:-1]
        pieces = torch.split(y, [math.prod(sizes) for sizes in self._kept], dim=-1)
        total, x = y.new_zeros(batch), None
        for scale, piece, sizes in reversed(list(zip(self.scales, pieces, self._kept, strict=True))):
            first = piece.reshape(*batch, *sizes)
            whole = first if x is None else torch.cat([first, x], dim=-len(sizes))
            x, ladj = cast(Transform, scale).inverse(whole, context)
            total = total + ladj
        return cast(Tensor, x), total

    def _parts(self) -> Iterator[tuple[str, Transform]]:
        return ((f"scales.{number}", cast(Transform, scale)) for number, scale in enumerate(self.scales))

    def _forward_shape(self, event: Shape) -> Shape:
        del event
        return (math.prod(self.event_shape),)

    def _inverse_shape(self, latent: Shape) -> Shape:
        del latent
        return self.event_shape


def _returned(number: int, scale: Transform, sizes: Shape) -> tuple[int, ...]:
    try:
        out = scale.forward_shape(sizes)
    except ShapeError as error:
        raise ShapeError(f"MultiscaleTransform: scale {number}, {error}") from None
    if None in out:
        raise ShapeError(
            f"MultiscaleTransform: scale {number}, {type(scale).__name__}, does not say what sizes it returns for "
            f"{sizes}"
        )
    return cast(tuple[int, ...], out)
