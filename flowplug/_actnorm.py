"""Normalisation that starts from data."""

from typing import Any

import torch
from torch import Tensor, nn

from flowplug._arguments import require_ints
from flowplug._errors import ShapeError
from flowplug._moments import merge, nonzero, standardise
from flowplug._start import FromData
from flowplug._transform import Transform


class ActNorm(FromData, Transform):
    r"""A scale and shift per feature that standardises the data it starts from, then trains.

    .. math:: y = \frac{x - m}{s} \exp(a) + b, \qquad \mathrm{ladj} = n \sum_i (a_i - \log s_i)

    m and s are the mean and standard deviation of the first 64 rows met by `forward` in train mode: of the first batch,
    or, with a `StartWarning`, of as many small ones as it takes, each counted before it is mapped. (Standard deviations
    of 64 rows are right to 9 %; the parameters learn the rest.) `start` takes them from data by name, in any mode and
    with a = b = 0, and `reset` goes back to m = 0 and s = 1. A constant feature is centred and left at its scale; one
    row gives no scale.

    m and s are kept in buffers (saved, loaded, averaged, and broadcast by DDP); a and b are parameters that start at 0.
    Where training starts with `inverse`, as for a reverse KL divergence, the map does not start from data later, and a
    `StartWarning` says so. For images the features are the channels, a row is an image, and n is the number of pixels.

    Reference: Kingma, Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", NeurIPS 2018, section 3.1.

    Args:
        features: Width of the events, or the number of channels.
        event_dim: 1 for vectors, 3 for images ``(C, H, W)``; features come first in the event.

    Raises:
        ShapeError: ``features`` or ``event_dim`` is below 1, or an input has another width.

    Example:
        >>> norm = ActNorm(2)
        >>> y, ladj = norm(5 + 3 * torch.randn(100, 2))
        >>> bool(y.mean().abs() < 1e-5)
        True
    """

    mean: Tensor
    std: Tensor
    spread: Tensor
    rows_needed = 64

    def __init__(self, features: int, *, event_dim: int = 1) -> None:
        super().__init__()
        require_ints("ActNorm", features=features, event_dim=event_dim)
        if features < 1 or event_dim < 1:
            raise ShapeError(f"ActNorm needs features and event_dim of at least 1; got {features} and {event_dim}")
        self.event_dim = event_dim
        self.event_shape = (features, *[None] * (event_dim - 1))
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.shift = nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        # As std, but 0 where a feature was constant so far: what the next batch is merged with.
        self.register_buffer("spread", torch.zeros(features))

    def extra_repr(self) -> str:
        """Width and event_dim."""
        return f"{self.mean.numel()}, event_dim={self.event_dim}"

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        self._meet(x)
        mean, std = self._steady(self.mean), self._steady(self.std)
        y = (x - self._wide(mean)) * self._wide(self.log_scale.exp() / std) + self._wide(self.shift)
        return y, self._ladj(x)

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        self._keep()
        mean, std = self._steady(self.mean), self._steady(self.std)
        x = (y - self._wide(self.shift)) * self._wide(std / self.log_scale.exp()) + self._wide(mean)
        return x, -self._ladj(y)

    def _wide(self, value: Tensor) -> Tensor:
        return value.reshape(-1, *[1] * (self.event_dim - 1))

    def _ladj(self, x: Tensor) -> Tensor:
        split = x.dim() - self.event_dim
        pixels = x.shape[split + 1 :].numel()
        ladj = pixels * (self.log_scale - self.std.log()).sum()
        # Hosts add to log-dets in place: every sample gets an entry of its own.
        return ladj.expand(x.shape[:split]).clone()

    def _take_in(self, rows: Tensor, seen: float) -> None:
        values = rows.movedim(1, -1).reshape(-1, rows.shape[1])
        before = self.mean.to(rows.dtype), self.spread.to(rows.dtype)
        mean, std, _ = standardise(values)
        mean, std, _ = merge(*before, mean, std, len(rows) / (seen + len(rows)))
        self.mean.copy_(mean)
        self.spread.copy_(std)
        # One image has a spread over its pixels, but not that of the data.
        self.std.copy_(nonzero(std) if seen + len(rows) >= 2 else torch.ones_like(std))

    def _forget(self) -> None:
        for zero in (self.mean, self.spread, self.log_scale, self.shift):
            zero.zero_()
        self.std.fill_(1)

    def _upgrade(self, state: dict[str, Any], prefix: str) -> None:
        state[f"{prefix}spread"] = torch.zeros_like(state[f"{prefix}std"])
