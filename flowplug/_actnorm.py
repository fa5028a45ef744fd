"""Normalisation with data-dependent initialisation."""

import torch
from torch import Tensor, nn

from flowplug._arguments import require_ints
from flowplug._errors import ShapeError
from flowplug._transform import Transform


class ActNorm(Transform):
    r"""A scale and shift per feature that standardises the first batch it sees, then trains.

    .. math:: y = \frac{x - m}{s} \exp(a) + b, \qquad \mathrm{ladj} = n \sum_i (a_i - \log s_i)

    m and s are the mean and standard deviation of the first batch met by `forward` in train mode, kept in buffers
    (saved, loaded, and broadcast by DDP); a and b are parameters that start at 0. Before that batch, m = 0 and s = 1;
    they stay so in a flow whose training starts with `inverse`, as for a reverse KL divergence. For images the features
    are the channels, and n is the number of pixels.

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
    initialized: Tensor

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
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        if self.training and x.numel() and not self.initialized:
            self._initialize(x.detach())
        y = (x - self._wide(self.mean)) * self._wide(self.log_scale.exp() / self.std) + self._wide(self.shift)
        return y, self._ladj(x)

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        if self.training and torch.is_grad_enabled():
            # A later forward must not change the map that this graph differentiates.
            self.initialized.fill_(1)
        x = (y - self._wide(self.shift)) * self._wide(self.std / self.log_scale.exp()) + self._wide(self.mean)
        return x, -self._ladj(y)

    def _wide(self, value: Tensor) -> Tensor:
        return value.reshape(-1, *[1] * (self.event_dim - 1))

    def _ladj(self, x: Tensor) -> Tensor:
        split = x.dim() - self.event_dim
        pixels = x.shape[split + 1 :].numel()
        ladj = pixels * (self.log_scale - self.std.log()).sum()
        # Hosts add to log-dets in place: every sample gets an entry of its own.
        return ladj.expand(x.shape[:split]).clone()

    @torch.no_grad()
    def _initialize(self, x: Tensor) -> None:
        values = x.movedim(-self.event_dim, 0).flatten(1)
        self.mean.copy_(values.mean(1))
        std = values.std(1, correction=0)
        # A constant feature is centred and left at its scale.
        self.std.copy_(torch.where(std > torch.finfo(x.dtype).eps * values.abs().amax(1), std, 1.0))
        self.initialized.fill_(1)
