"""The default activation of perceptrons: functions of many frequencies side by side."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from flowplug._arguments import require_numbers
from flowplug._errors import ShapeError
from flowplug._reading import transformed
from flowplug.branch import LipschitzBound, rule_for
from flowplug.lipschitz.activations._activation import Activation, ValueAndSlope


class SineHuber(Activation):
    r"""Sines in the first half of the channels, pseudo-Huber functions in the second, each at a ladder of frequencies.

    .. math:: \phi_i(x) = \frac{\sin(\omega_i x)}{\omega_i} \quad\text{or}\quad
        \phi_i(x) = \frac{\sqrt{1 + (\omega_i x)^2} - 1}{\omega_i}, \qquad \omega_i = \omega \, h^{i / (n - 1)}

    with i from 0 to n - 1 in each half, :math:`h` the ``highest`` frequency and a trainable :math:`\omega = \exp(w)`
    that starts at 1, for each half its own. All slopes lie in [-1, 1]. High sines place narrow features, low ones broad
    features, and pseudo-Huber functions stay linear far out, where a bounded function can move no tail.

    References: Sitzmann et al., "Implicit Neural Representations with Periodic Activation Functions", NeurIPS 2020, for
    sines; Huber, "Robust Estimation of a Location Parameter", Ann. Math. Stat. 35, 1964, for the function smoothed.

    Args:
        highest: The highest frequency over the lowest, at least 1.

    Raises:
        ValueError: ``highest`` is below 1 or infinite.
        ShapeError: The input is not ``(B, channels, *spatial)``.

    Example:
        >>> SineHuber()(torch.zeros(5, 4)).shape
        torch.Size([5, 4])
    """

    def __init__(self, highest: float = 30.0) -> None:
        super().__init__()
        require_numbers("SineHuber", highest=highest)
        if not 1 <= highest < math.inf:
            raise ValueError(f"SineHuber(highest=...) must be at least 1 and finite; got {highest}")
        self.highest = float(highest)
        self.log_frequency = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        """The value ``(B, channels, *spatial)``."""
        frequency = self._frequency_of(x)
        u, v = _halves(frequency * x)
        return torch.cat([u.sin(), _root(v) - 1], dim=1) / frequency

    def derivative(self, x: Tensor) -> Tensor:
        """The derivative at ``x``, of the same shape."""
        return self.linearize(self._frequency_of(x) * x)[1]

    def frequency(self, width: int) -> Tensor:
        r"""The :math:`\omega_i` of both halves, ``(width,)``."""
        top, like = math.log(self.highest), self.log_frequency
        parts = [
            start + torch.linspace(0, top, count, dtype=like.dtype, device=like.device)
            for start, count in zip(like, (_sines(width), width - _sines(width)), strict=True)
        ]
        return torch.cat(parts).exp()

    def linearize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Value and derivative at ``x`` for :math:`\omega_i = 1`."""
        if transformed():
            return _value_and_slope(x)
        # The compiler follows classes that it finds by name.
        function = _ValueAndSlope.apply if torch.compiler.is_compiling() else _ValueAndSlope.run
        value, slope = function(x)
        return value, slope

    def overwrite(self, x: Tensor) -> Tensor:
        """The value, on top of ``x``."""
        u, v = _halves(x)
        u.sin_()
        v.hypot_(torch.ones_like(v)).sub_(1)
        return x

    def extra_repr(self) -> str:
        """The highest frequency."""
        return f"highest={self.highest:g}"

    def _frequency_of(self, x: Tensor) -> Tensor:
        if x.dim() < 2:
            raise ShapeError(f"SineHuber expects inputs (B, channels, *spatial); got {tuple(x.shape)}")
        return self.frequency(x.shape[1]).reshape(-1, *[1] * (x.dim() - 2))


def _sines(width: int) -> int:
    """How many of the channels are sines."""
    return (width + 1) // 2


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The channels of the sines, and those of the pseudo-Huber functions."""
    n = _sines(x.shape[1])
    return x[:, :n], x[:, n:]


def _root(v: Tensor) -> Tensor:
    """``sqrt(1 + v^2)``, without the square, which would overflow."""
    return torch.hypot(v, torch.ones_like(v))


def _value_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    """Those of all channels at frequency 1."""
    u, v = _halves(x)
    root = _root(v)
    return torch.cat([u.sin(), root - 1], dim=1), torch.cat([u.cos(), v / root], dim=1)


class _ValueAndSlope(ValueAndSlope):
    """The same, with its derivative."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return _value_and_slope(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401
        value, slope = ctx.saved_tensors
        sine, huber = _halves(value)
        # The derivative of the slope: -sin u, and (1 + v^2)^(-3/2).
        bend = torch.cat([-sine, (huber + 1).reciprocal().pow(3)], dim=1)
        return torch.addcmul(grads[0] * slope, grads[1], bend)


@rule_for(SineHuber)
def _(module: SineHuber) -> LipschitzBound:
    return LipschitzBound(1.0, elementwise=True, limit=1.0)
