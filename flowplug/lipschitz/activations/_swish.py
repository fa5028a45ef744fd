"""Swish, scaled to slope 1: element by element, and concatenated."""

import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowplug._arguments import require_numbers
from flowplug._errors import LipschitzError
from flowplug._reading import transformed
from flowplug._scalars import OneNumber
from flowplug.branch import SWISH_SLOPE, LipschitzBound, rule_for
from flowplug.lipschitz.activations._activation import Activation, ValueAndSlope

_SHARE: Final = 1 / SWISH_SLOPE


class LipSwish(OneNumber, Activation):
    r"""Swish scaled to slope 1, with a trainable sharpness.

    .. math:: \phi(x) = x \, \sigma(\beta x) / 1.0998, \qquad \beta = \operatorname{softplus}(b)

    The constant is the largest slope of swish, the same for every :math:`\beta`.

    Reference: Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling", NeurIPS 2019,
    section 3.3.

    Example:
        >>> LipSwish()(torch.zeros(2))
        tensor([0., 0.], grad_fn=<DivBackward0>)
    """

    number = "raw_beta"

    def __init__(self) -> None:
        super().__init__()
        self.raw_beta = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """The value, of the shape of ``x``."""
        return x * torch.sigmoid(self.frequency(1) * x) / SWISH_SLOPE

    def derivative(self, x: Tensor) -> Tensor:
        """The derivative at ``x``, of the same shape."""
        return self.linearize(self.frequency(1) * x)[1]

    def frequency(self, width: int) -> Tensor:
        r""":math:`\beta`."""
        del width
        return functional.softplus(self.raw_beta).squeeze(0)

    def linearize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Value and derivative at ``x`` for :math:`\beta = 1`."""
        if transformed():
            return _parts(x)
        # The compiler follows classes that it finds by name.
        function = _ValueAndSlope.apply if torch.compiler.is_compiling() else _ValueAndSlope.run
        value, slope, _ = function(x)
        return value, slope

    def overwrite(self, x: Tensor) -> Tensor:
        """The value, on top of ``x``."""
        return x.mul_(torch.sigmoid(x)).mul_(_SHARE)


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and slope, for torch.func to differentiate."""
    gate = torch.sigmoid(x)
    value = _SHARE * x * gate
    return value, torch.addcmul(_SHARE * gate, value, 1 - gate)


class _ValueAndSlope(ValueAndSlope):
    """The same with the gate, and with its derivative: autograd would keep seven numbers for each, this keeps three.

    What is written in place has just been made.
    """

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate = torch.sigmoid(x)
        value = (x * gate).mul_(_SHARE)
        return value, torch.rsub(gate, 1).mul_(value).add_(gate, alpha=_SHARE), gate

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
        ctx.set_materialize_grads(False)  # that of the gate comes with second derivatives alone
        ValueAndSlope.setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, by_value: Tensor | None, by_slope: Tensor | None, by_gate: Tensor | None) -> Tensor:  # noqa: ANN401
        value, slope, gate = ctx.saved_tensors
        total = torch.zeros_like(value) if by_value is None else by_value * slope
        if by_slope is not None:
            bend = torch.add(torch.rsub(gate, 1, alpha=2) * value, gate, alpha=2 * _SHARE)
            total = torch.addcmul(total, by_slope * bend, 1 - gate)
        return total if by_gate is None else torch.addcmul(total, by_gate * gate, 1 - gate)


@rule_for(LipSwish)  # another forward would need another derivative too
def _(module: LipSwish) -> LipschitzBound:
    return LipschitzBound(1.0, elementwise=True, limit=1.0)


class CLipSwish(OneNumber):
    r"""Swish of the input and of its negative, side by side: no direction saturates, at twice the width.

    .. math:: \phi(x) = [s(x), s(-x)] / C, \qquad s(x) = x \, \sigma(\beta x), \quad \beta = \operatorname{softplus}(b)

    As :math:`s(x) - s(-x) = x`, the slopes of the two are a and a - 1, with a in [1 - m, m] and m = 1.0998 the largest
    slope of swish. In the p-norm the pair therefore has the constant :math:`(m^p + (m - 1)^p)^{1/p}`, which falls with
    p: 1.1997 for p = 1, 1.1044 for p = 2, 1.0998 for p = inf. With C that of ``order`` the activation has constant 1 in
    this norm, and a little less in those of larger order.

    Reference: Perugachi-Diaz, Tomczak, Bhulai, "Invertible DenseNets with Concatenated LipSwish", NeurIPS 2021.

    Args:
        order: The smallest order of a norm in which the constant is at most 1; in [1, inf]. Pass
            ``functools.partial(CLipSwish, order=1)`` to networks bounded in the 1-norm or with learned orders below 2.

    Raises:
        LipschitzError: ``order`` is below 1.

    Example:
        >>> CLipSwish()(torch.zeros(5, 3)).shape
        torch.Size([5, 6])
    """

    number = "raw_beta"

    def __init__(self, order: float = 2.0) -> None:
        super().__init__()
        require_numbers("CLipSwish", order=order)
        if not order >= 1:
            raise LipschitzError(f"CLipSwish(order=...) must be in [1, inf]; got {order}")
        self.order = order
        self.raw_beta = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(B, channels, *spatial)`` to ``(B, 2 channels, *spatial)``."""
        return self._value(x, torch.sigmoid(self._scaled(x)))

    def linearize(self, x: Tensor) -> tuple[Tensor, Tensor, float]:
        """The value ``(B, 2 channels)`` at ``x: (B, channels)``, and the slopes of its first half; those of the other.

        The latter differ from them by the number returned.
        """
        share, scaled = 1 / _pair_constant(self.order), self._scaled(x)
        gate = torch.sigmoid(scaled)
        return self._value(x, gate), share * torch.addcmul(gate, scaled * gate, 1 - gate), -share

    def _scaled(self, x: Tensor) -> Tensor:
        return functional.softplus(self.raw_beta).squeeze(0) * x

    def _value(self, x: Tensor, gate: Tensor) -> Tensor:
        share = 1 / _pair_constant(self.order)
        first = x * (share * gate)
        return torch.cat([first, torch.sub(first, x, alpha=share)], dim=1)

    def lipschitz_bound_in(self, order: float) -> LipschitzBound:
        """The exact constant in the p-norm of this order."""
        constant = _pair_constant(order) / _pair_constant(self.order)
        return LipschitzBound(constant, order, limit=constant)

    def extra_repr(self) -> str:
        """The order."""
        return f"order={self.order}"


def _pair_constant(order: float) -> float:
    """The largest p-norm of the slopes ``(m, m - 1)``."""
    ratio = (SWISH_SLOPE - 1) / SWISH_SLOPE
    return SWISH_SLOPE if math.isinf(order) else SWISH_SLOPE * (1 + ratio**order) ** (1 / order)


@rule_for(CLipSwish)
def _(module: CLipSwish) -> LipschitzBound:
    return module.lipschitz_bound_in(module.order)
