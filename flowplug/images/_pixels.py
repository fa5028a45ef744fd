"""From grey levels to numbers with a density, and from this density to bits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowplug._arguments import (
    as_shape,
    require_instance,
    require_ints,
    require_numbers,
    require_positive,
    require_shape,
)
from flowplug._errors import DomainError, DtypeError
from flowplug._reading import known


@dataclass(frozen=True)
class Dequantize:
    r"""Gives grey levels a density: uniform noise within each level.

    .. math:: x = (k + u) / K, \qquad u \sim U(0, 1)

    The noise is drawn from torch's generator, for every call anew. It fills the level of each pixel in equal steps, of
    which single precision has 2^15 for 256 levels, and touches neither end: ``(K * x).floor()`` is k, and x is never
    0 or 1. The result has torch's default dtype, at least single precision, and the device of the pixels. Whether they
    are levels is looked at, which on a GPU waits for it, unless bytes cannot be others.

    Reference: Uria, Murray, Larochelle, "RNADE: The Real-valued Neural Autoregressive Density-estimator", NeurIPS 2013,
    section 5.1; Theis, van den Oord, Bethge, "A Note on the Evaluation of Generative Models", ICLR 2016, section 3.1.

    Args:
        levels: The number K of levels, from 2 to 65,536.

    Raises:
        ValueError: ``levels`` is outside of that range.

    Example:
        >>> pixels = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
        >>> x = Dequantize(256)(pixels)
        >>> torch.equal((256 * x).floor(), pixels.float())
        True
    """

    levels: int = 256

    def __post_init__(self) -> None:
        require_ints("Dequantize", levels=self.levels)
        if not 2 <= self.levels <= 2**16:
            raise ValueError(f"Dequantize(levels=...) must be from 2 to 65536; got {self.levels}")

    def __call__(self, pixels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Adds the noise.

        Args:
            pixels: Levels from 0 to ``levels - 1``, of any integer dtype and shape.
            generator: Draws the noise, on the device of the pixels; ``None`` for torch's own.

        Returns:
            Floats between 0 and 1, of the shape of the pixels.

        Raises:
            DtypeError: The pixels are no integers.
            DomainError: A pixel is no level.
        """
        require_instance("Dequantize", "pixels", pixels, Tensor, "torch.zeros(5, 1, 8, 8, dtype=torch.uint8)")
        if pixels.is_floating_point() or pixels.is_complex() or pixels.dtype == torch.bool:
            raise DtypeError(
                f"Dequantize expects integers from 0 to {self.levels - 1}; got {pixels.dtype}: pass the pixels as they "
                "were stored, e.g. (255 * x).round().byte()"
            )
        if pixels.dtype != torch.uint8 or self.levels < 2**8:  # others cannot be outside, and are not read
            whole = pixels.to(torch.int64)
            inside = ((whole >= 0) & (whole < self.levels)).all()
            message = f"Dequantize expects levels from 0 to {self.levels - 1}"
            if torch.compiler.is_compiling():
                torch._assert_async(inside, f"{message}; got others")
            elif known(inside) is False:
                raise DomainError(f"{message}; got some from {int(whole.min())} to {int(whole.max())}")
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        # As many as leave the sum exact: rounding would carry noise into the next level.
        steps = min(2**30, round(0.5 / torch.finfo(dtype).eps) >> (self.levels - 1).bit_length())
        noise = torch.randint(steps, pixels.shape, generator=generator, dtype=torch.int32, device=pixels.device)
        x: Tensor = (pixels.to(dtype) + (noise.to(dtype) + 0.5) / steps) / self.levels
        return x


def bits_per_dim(
    log_prob: Tensor, event_shape: int | Sequence[int], *, levels: int = 256, low: float = 0.0, high: float = 1.0
) -> Tensor:
    r"""The bits a dimension of dequantised data, an upper bound, on average, on those of the levels themselves.

    .. math:: b = -\frac{\log p(x)}{D \log 2} + \log_2 \frac{K}{\mathrm{high} - \mathrm{low}} \ge
        -\frac{1}{D} \log_2 \mathrm{P}(k) \text{ in the mean over the noise}

    p is the density of the data as they go into the model, dequantised from ``low`` to ``high``, as by `Dequantize`.
    Whatever the model consists of belongs to it, a `Logit` included, whose log-det has alpha in it: nothing is to be
    added here. Of a model of logits of the data, add their log-det to ``log_prob``.

    Reference: Theis, van den Oord, Bethge, "A Note on the Evaluation of Generative Models", ICLR 2016, section 3.1.

    Args:
        log_prob: Log-densities in nats, of any shape.
        event_shape: Sizes of the events, whose product is D.
        levels: The number K of levels.
        low: Where the first level begins.
        high: Where the last level ends.

    Returns:
        Bits a dimension, of the shape of ``log_prob``.

    Raises:
        ShapeError: A size is below 1.
        ValueError: ``levels`` is below 1, or ``low`` not below ``high``.

    Example:
        >>> bits_per_dim(torch.zeros(2), (1, 28, 28))  # the uniform density on [0, 1]
        tensor([8., 8.])
    """
    require_instance("bits_per_dim", "log_prob", log_prob, Tensor, "flow.log_prob(x)")
    require_shape("bits_per_dim", event_shape=event_shape)
    require_positive("bits_per_dim", event_shape=event_shape)
    require_ints("bits_per_dim", levels=levels)
    require_numbers("bits_per_dim", low=low, high=high)
    if levels < 1 or not 0 < high - low < math.inf:
        raise ValueError(f"bits_per_dim needs levels of at least 1 and low < high; got {levels}, {low} and {high}")
    size = math.prod(as_shape(event_shape))
    return math.log2(levels / (high - low)) - log_prob / (size * math.log(2))
