"""Element-wise activations, with one frequency."""

from typing import Any

import torch
from torch import Tensor, nn

from flowplug._arguments import require_numbers
from flowplug._reading import transformed
from flowplug._scalars import OneNumber
from flowplug.branch import LipschitzBound, rule_for
from flowplug.lipschitz.activations._activation import Activation, ValueAndSlope


class Sine(OneNumber, Activation):
    r"""A sine with a trainable frequency, scaled to slope 1.

    .. math:: \phi(x) = \sin(\omega x) / \omega, \qquad \omega = \exp(w)

    Its slope reaches both 1 and -1, so a branch can bend in either direction everywhere on the line; no saturation
    wastes the bound.

    Args:
        frequency: The initial :math:`\omega`, positive.

    Raises:
        ValueError: ``frequency`` is not positive.

    Example:
        >>> Sine()(torch.zeros(2)).detach()
        tensor([0., 0.])
    """

    number = "log_frequency"

    def __init__(self, frequency: float = 1.0) -> None:
        super().__init__()
        require_numbers("Sine", frequency=frequency)
        if not frequency > 0:
            raise ValueError(f"Sine(frequency=...) must be positive; got {frequency}")
        self.log_frequency = nn.Parameter(torch.full((1,), float(frequency)).log())

    def forward(self, x: Tensor) -> Tensor:
        """The value, of the shape of ``x``."""
        frequency = self.frequency(1)
        return torch.sin(frequency * x) / frequency

    def derivative(self, x: Tensor) -> Tensor:
        """The derivative at ``x``, of the same shape."""
        return torch.cos(self.frequency(1) * x)

    def frequency(self, width: int) -> Tensor:
        r""":math:`\omega`."""
        del width
        return self.log_frequency.exp().squeeze(0)

    def linearize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Value and derivative at ``x`` for :math:`\omega = 1`."""
        if transformed():
            return x.sin(), x.cos()
        # The compiler follows classes that it finds by name.
        function = _SineAndCosine.apply if torch.compiler.is_compiling() else _SineAndCosine.run
        value, slope = function(x)
        return value, slope

    def overwrite(self, x: Tensor) -> Tensor:
        """The value, on top of ``x``."""
        return x.sin_()


class _SineAndCosine(ValueAndSlope):
    """Autograd would take both again in the backward pass."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sin(), x.cos()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401
        sine, cosine = ctx.saved_tensors
        return torch.addcmul(grads[0] * cosine, grads[1], sine, value=-1)


@rule_for(Sine)  # another forward would need another derivative too
def _(module: Sine) -> LipschitzBound:
    return LipschitzBound(1.0, elementwise=True, limit=1.0)
