"""Pixels for channels."""

from typing import cast

from torch import Tensor

from flowplug._arguments import require_ints
from flowplug._errors import ShapeError
from flowplug._transform import Shape, Transform
from flowplug.images._reshape import copied

Sizes = tuple[int, ...]


class Squeeze(Transform):
    r"""Turns blocks of pixels into channels: events ``(C, H, W)`` into ``(C f^2, H / f, W / f)``.

    .. math:: y_{c f^2 + f a + b,\, i,\, j} = x_{c,\, f i + a,\, f j + b}, \qquad \mathrm{ladj} = 0

    The order is that of torch's ``pixel_unshuffle``, and of the squeezes of nflows and normflows.

    Reference: Dinh, Sohl-Dickstein, Bengio, "Density Estimation Using Real NVP", ICLR 2017, section 3.6.

    Args:
        factor: The side f of a block, at least 1.

    Raises:
        ShapeError: ``factor`` is below 1, or does not divide the height and width, or its square the channels of what
            is inverted.

    Example:
        >>> y, ladj = Squeeze(2)(torch.randn(5, 3, 8, 6))
        >>> y.shape, ladj.shape
        (torch.Size([5, 12, 4, 3]), torch.Size([5]))
    """

    event_dim = 3
    event_shape = (None, None, None)

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        require_ints("Squeeze", factor=factor)
        if factor < 1:
            raise ShapeError(f"Squeeze(factor=...) must be at least 1; got {factor}")
        self.factor = int(factor)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        batch, latent, f = x.shape[:-3], self._forward_shape(tuple(x.shape[-3:])), self.factor
        # torch's pixel_unshuffle, but for batches without rows, which that leaves as they are.
        blocks = x.reshape(*batch, x.shape[-3], x.shape[-2] // f, f, x.shape[-1] // f, f)
        return copied(blocks.movedim((-3, -1), (-4, -3)), *batch, *cast(Sizes, latent)), x.new_zeros(batch)

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        batch, event, f = y.shape[:-3], self._inverse_shape(tuple(y.shape[-3:])), self.factor
        blocks = y.reshape(*batch, y.shape[-3] // f**2, f, f, *y.shape[-2:])
        return copied(blocks.movedim((-4, -3), (-3, -1)), *batch, *cast(Sizes, event)), y.new_zeros(batch)

    def _forward_shape(self, event: Shape) -> Shape:
        channels, *sides = event
        if any(side is not None and side % self.factor for side in sides):
            raise ShapeError(f"Squeeze needs images (C, H, W) whose sides {self.factor} divides; got {event}")
        squeezed = (None if side is None else side // self.factor for side in sides)
        return (None if channels is None else channels * self.factor**2, *squeezed)

    def _inverse_shape(self, latent: Shape) -> Shape:
        channels, *sides = latent
        if channels is not None and channels % self.factor**2:
            raise ShapeError(
                f"Squeeze.inverse needs images (C, H, W) whose number of channels {self.factor**2} divides; "
                f"got {latent}"
            )
        whole = (None if side is None else side * self.factor for side in sides)
        return (None if channels is None else channels // self.factor**2, *whole)

    def extra_repr(self) -> str:
        """Names the factor."""
        return str(self.factor)
