"""Transforms of vectors on the patches of images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flowplug._arguments import as_shape, require_instance, require_ints, require_positive, require_sizes
from flowplug._errors import ContextError, ShapeError
from flowplug._transform import Shape, Transform


class PatchTransform(Transform):
    r"""Cuts images ``(C, H, W)`` into square patches and applies one transform of vectors to each.

    .. math:: y_p = f(x_p, (e_p, c)), \qquad \mathrm{ladj} = \sum_p \mathrm{ladj}_f(x_p)

    The patches tile the image once it is rolled by ``shift`` pixels, down and to the right, so that those of
    consecutive transforms overlap. A patch is a row of a table of :math:`C s^2` features to f, whatever f is: log-dets
    of small matrices, starts from data, products in closed form, all as there. A conditional f is told the place
    :math:`e_p` of the patch, its row and its column one-hot, before the context of the image.

    Args:
        transform: The transform f, with ``event_dim`` 1 and :math:`C s^2` features. Conditional on a context of width
            H / s + W / s + that of the images, or unconditional.
        event_shape: Sizes ``(C, H, W)`` of the images.
        size: The side s of the patches, which divides H and W.
        shift: Pixels by which the image is rolled before it is cut, and back behind.

    Raises:
        ValueError: ``shift`` is not in [0, ``size``).
        ShapeError: ``size`` does not divide the sides, or the patches have other widths than the transform.
        ContextError: The transform is conditional on less than the place.

    Example:
        >>> residual = ResidualTransform(LipschitzMLP(3 * 4 * 4, context_features=2 + 2))
        >>> y, ladj = PatchTransform(residual, (3, 8, 8), size=4, shift=2)(torch.randn(5, 3, 8, 8))
        >>> y.shape, ladj.shape
        (torch.Size([5, 3, 8, 8]), torch.Size([5]))
    """

    event_dim = 3
    event_shape: tuple[int, ...]

    def __init__(self, transform: Transform, event_shape: Sequence[int], size: int, *, shift: int = 0) -> None:
        super().__init__()
        name = type(self).__name__
        require_instance(name, "transform", transform, Transform, "ActNorm(16)")
        require_sizes(name, event_shape=event_shape)
        require_ints(name, size=size, shift=shift)
        require_positive(name, event_shape=event_shape, size=size)
        self.event_shape = as_shape(event_shape)
        if len(self.event_shape) != 3 or any(side % size for side in self.event_shape[1:]):
            raise ShapeError(
                f"{name} needs an event_shape (C, H, W) whose sides size={size} divides; got {self.event_shape}"
            )
        if not 0 <= shift < size:
            raise ValueError(f"{name}(shift=...) must be from 0 to size - 1 = {size - 1}; got {shift}")
        channels, *sides = self.event_shape
        features = (channels * size**2,)
        if transform.event_dim != 1 or tuple(transform.forward_shape((None,))) not in ((None,), features):
            raise ShapeError(
                f"{name} needs a transform of vectors of width {features[0]} = {channels} x {size}^2; "
                f"{type(transform).__name__} has event_dim {transform.event_dim} and event_shape "
                f"{transform.event_shape}"
            )
        transform.forward_shape(features)
        rows, columns = (side // size for side in sides)
        self.transform, self.size, self.shift = transform, size, shift
        if 0 < transform.context_features < rows + columns:
            raise ContextError(
                f"{name} tells a conditional transform the row and column of each patch: it needs a context of width "
                f"{rows + columns} + that of the images; {type(transform).__name__} has {transform.context_features}"
            )
        self.context_features = max(0, transform.context_features - rows - columns)
        self._grid = (rows, columns)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        y, ladj = self.transform(self._cut(x), self._told(x, context))
        return self._join(y), ladj.sum(-1)

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, ladj = self.transform.inverse(self._cut(y), self._told(y, context))
        return self._join(x), ladj.sum(-1)

    def _cut(self, x: Tensor) -> Tensor:
        """The patches ``(*batch, places, features)`` of images ``(*batch, C, H, W)``."""
        channels, s, (rows, columns) = self.event_shape[0], self.size, self._grid
        rolled = torch.roll(x, (self.shift, self.shift), (-2, -1)) if self.shift else x
        blocks = rolled.reshape(*x.shape[:-3], channels, rows, s, columns, s)
        return blocks.movedim((-4, -2), (-5, -4)).reshape(*x.shape[:-3], rows * columns, channels * s**2)

    def _join(self, patches: Tensor) -> Tensor:
        """The images of patches."""
        channels, s, (rows, columns) = self.event_shape[0], self.size, self._grid
        blocks = patches.reshape(*patches.shape[:-2], rows, columns, channels, s, s)
        image = blocks.movedim((-5, -4), (-4, -2)).reshape(*patches.shape[:-2], *self.event_shape)
        return torch.roll(image, (-self.shift, -self.shift), (-2, -1)) if self.shift else image

    def _told(self, x: Tensor, context: Tensor | None) -> Tensor | None:
        """What each patch is told, ``(*batch, places, H / s + W / s + context_features)``."""
        if not self.transform.context_features:
            return None
        batch, (rows, columns) = x.shape[:-3], self._grid
        row, column = (torch.eye(count, dtype=x.dtype, device=x.device) for count in self._grid)
        place = torch.cat([row.repeat_interleave(columns, 0), column.repeat(rows, 1)], -1).expand(*batch, -1, -1)
        if context is None:
            return place
        return torch.cat([place, context.unsqueeze(-2).expand(*batch, rows * columns, -1)], -1)

    def _forward_shape(self, event: Shape) -> Shape:
        del event
        return self.event_shape

    def _inverse_shape(self, latent: Shape) -> Shape:
        del latent
        return self.event_shape

    def extra_repr(self) -> str:
        """Names the sizes."""
        return f"event_shape={self.event_shape}, size={self.size}, shift={self.shift}"
