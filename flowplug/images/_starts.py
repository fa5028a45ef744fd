"""What stands around the residual transforms of an image flow: transforms that start from the data's pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flowplug._arguments import require_ints, require_numbers
from flowplug._transform import Transform
from flowplug._whitening import Whitening
from flowplug.images._patches import PatchTransform
from flowplug.images._reshape import Reshape
from flowplug.marginal import HistogramGaussianization, MarginalGaussianization


class ImageStart(Protocol):
    """Makes the transforms that take the scales, shapes and correlations of pixels off the rest of a flow.

    Both lists hold transforms of images ``(C, H, W)`` that keep the shape; between them stand the residual transforms,
    which start as identities, so that what is behind them starts from the data as well.

    Example:
        >>> [type(part).__name__ for part in PatchStart(size=4).before((1, 8, 8))]
        ['PatchTransform', 'PatchTransform']
    """

    def before(self, event_shape: Sequence[int]) -> list[Transform]:
        """What comes first, data to latent."""

    def behind(self, event_shape: Sequence[int]) -> list[Transform]:
        """What comes last."""


@dataclass(frozen=True)
class PixelStart:
    r"""For images of things in place, as digits: the histogram of every pixel, and behind all the covariance of all.

    A `HistogramGaussianization` of each pixel first and a `Whitening` of the whole image last, a matrix of
    :math:`(C H W)^2` numbers, both without parameters: what is between them maps pixels, not mixtures of them.

    Args:
        levels: Number of grey levels.
        low: Where the first begins.
        high: Where the last ends.

    Raises:
        ValueError: There are fewer than 2 levels, or ``low`` is not below ``high``.

    Example:
        >>> flow = ImageStack((1, 8, 8), transforms=2, start=PixelStart(levels=17))
    """

    levels: int = 256
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        require_ints("PixelStart", levels=self.levels)
        require_numbers("PixelStart", low=self.low, high=self.high)
        if self.levels < 2 or not 0 < self.high - self.low < math.inf:
            raise ValueError(
                f"PixelStart needs levels of at least 2 and low < high; got levels={self.levels}, low={self.low}, "
                f"high={self.high}"
            )

    def before(self, event_shape: Sequence[int]) -> list[Transform]:
        """The histograms."""
        return [HistogramGaussianization(event_shape, levels=self.levels, low=self.low, high=self.high)]

    def behind(self, event_shape: Sequence[int]) -> list[Transform]:
        """The covariance, and what reshapes for it."""
        size = math.prod(event_shape)
        return [Reshape(event_shape, size), Whitening(size), Reshape(size, event_shape)]


@dataclass(frozen=True)
class PatchStart:
    r"""For photographs, whose statistics are alike everywhere: those of patches, first and last.

    Each time a `Whitening` and a `MarginalGaussianization` of all patches ``(C, s, s)``, the last time of those that
    lie between the first; nothing depends on the size of the image, and few images hold many patches.

    Args:
        size: The side s of the patches; of the divisors of both sides of the image the largest up to this one is taken.
        knots: As in `MarginalGaussianization`.

    Raises:
        ValueError: ``size`` is below 1, or ``knots`` even or below 3.

    Example:
        >>> flow = ImageStack((3, 8, 8), transforms=2, start=PatchStart(size=4))
    """

    size: int = 16
    knots: int = 9

    def __post_init__(self) -> None:
        require_ints("PatchStart", size=self.size, knots=self.knots)
        if self.size < 1:
            raise ValueError(f"PatchStart(size=...) must be at least 1; got {self.size}")
        if self.knots < 3 or self.knots % 2 == 0:
            raise ValueError(f"PatchStart(knots=...) must be odd and at least 3; got {self.knots}")

    def before(self, event_shape: Sequence[int]) -> list[Transform]:
        """Two transforms of patches."""
        return self._of_patches(event_shape, shifted=False)

    def behind(self, event_shape: Sequence[int]) -> list[Transform]:
        """Two transforms of the patches between them."""
        return self._of_patches(event_shape, shifted=True)

    def _of_patches(self, event_shape: Sequence[int], *, shifted: bool) -> list[Transform]:
        size = patch_size(event_shape, self.size)
        features, shift = event_shape[0] * size**2, size // 2 if shifted else 0
        marginals = MarginalGaussianization(features, knots=self.knots, share=1.0)
        parts: list[Transform] = [Whitening(features), marginals]
        return [PatchTransform(part, event_shape, size, shift=shift) for part in parts]


def patch_size(event_shape: Sequence[int], most: int) -> int:
    """The largest side, up to ``most``, of patches that tile images ``(C, H, W)``."""
    sides = math.gcd(*event_shape[1:])
    return max(side for side in range(1, min(most, sides) + 1) if sides % side == 0)
