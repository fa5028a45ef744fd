"""The same numbers in another shape."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flowplug._arguments import as_shape, require_positive, require_shape
from flowplug._errors import ShapeError
from flowplug._transform import Shape, Transform


class Reshape(Transform):
    """Gives events another shape, as from images ``(C, H, W)`` to vectors ``(C H W,)``; the log-det is 0.

    Args:
        event_shape: Sizes of the events.
        latent_shape: Sizes of what they become, of the same product.

    Raises:
        ShapeError: There are no sizes, one is below 1, or their products differ.

    Example:
        >>> reshape = Reshape((1, 28, 28), 784)
        >>> reshape(torch.randn(5, 1, 28, 28))[0].shape
        torch.Size([5, 784])
        >>> reshape.event_dim, reshape.latent_dim
        (3, 1)
    """

    event_shape: tuple[int, ...]

    def __init__(self, event_shape: int | Sequence[int], latent_shape: int | Sequence[int]) -> None:
        super().__init__()
        require_shape("Reshape", event_shape=event_shape, latent_shape=latent_shape)
        require_positive("Reshape", event_shape=event_shape, latent_shape=latent_shape)
        self.event_shape, self._latent_shape = as_shape(event_shape), as_shape(latent_shape)
        if not (self.event_shape and self._latent_shape) or math.prod(self.event_shape) != math.prod(
            self._latent_shape
        ):
            raise ShapeError(
                f"Reshape needs two shapes of as many entries; got event_shape={self.event_shape} and "
                f"latent_shape={self._latent_shape}"
            )
        self.event_dim = len(self.event_shape)

    @property
    def latent_dim(self) -> int:
        """The number of sizes in ``latent_shape``."""
        return len(self._latent_shape)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        batch = x.shape[: x.dim() - self.event_dim]
        return copied(x, *batch, *self._latent_shape), x.new_zeros(batch)

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        batch = y.shape[: y.dim() - self.latent_dim]
        return copied(y, *batch, *self.event_shape), y.new_zeros(batch)

    def _forward_shape(self, event: Shape) -> Shape:
        del event
        return self._latent_shape

    def _inverse_shape(self, latent: Shape) -> Shape:
        del latent
        return self.event_shape

    def extra_repr(self) -> str:
        """Names both shapes."""
        return f"{self.event_shape}, {self._latent_shape}"


def copied(x: Tensor, *sizes: int) -> Tensor:
    """The same numbers in memory of their own, as hosts write on what they get."""
    return x.clone(memory_format=torch.contiguous_format).reshape(sizes)
