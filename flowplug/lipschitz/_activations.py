"""Activations with Lipschitz constant 1: element-wise ones, concatenated ones, and sorting."""

import abc
import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowplug._errors import LipschitzError, ShapeError
from flowplug.lipschitz._bound import LipschitzBound, lipschitz_bound, rule_for


def _largest_swish_slope() -> float:
    """The largest slope of swish, ``x sigmoid(x)``: where its second derivative vanishes.

    There x tanh(x / 2) = 2, and the slope is 1/2 + x/4 = 1.0998...; the iteration contracts by 0.44.
    """
    x = 2.0
    for _ in range(60):
        x = 2 / math.tanh(x / 2)
    return math.nextafter(0.5 + x / 4, 2)


SWISH_SLOPE: Final = _largest_swish_slope()


class Activation(nn.Module, abc.ABC):
    """An element-wise 1-Lipschitz function that knows its derivative, which gives networks a fast exact Jacobian."""

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The value, of the shape of ``x``."""

    @abc.abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """The derivative at ``x``, of the same shape."""

    def frequency(self, width: int) -> Tensor | None:
        r"""The :math:`\omega` of a :math:`\phi(x) = \phi_1(\omega x) / \omega`, for networks to fold into weights.

        A scalar, or one for each of ``width`` channels.
        """
        del width
        return None

    def linearize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Value and derivative at ``x``, of :math:`\phi_1` where there is a `frequency`."""
        return self(x), self.derivative(x)


@lipschitz_bound.register
def _(module: Activation) -> LipschitzBound:
    return LipschitzBound(1.0)


class LipSwish(Activation):
    r"""Swish scaled to slope 1, with a trainable sharpness.

    .. math:: \phi(x) = x \, \sigma(\beta x) / 1.0998, \qquad \beta = \operatorname{softplus}(b)

    The constant is the largest slope of swish, the same for every :math:`\beta`.

    Reference: Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling", NeurIPS 2019,
    section 3.3.

    Example:
        >>> LipSwish()(torch.zeros(2))
        tensor([0., 0.], grad_fn=<DivBackward0>)
    """

    def __init__(self) -> None:
        super().__init__()
        self.raw_beta = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """The value, of the shape of ``x``."""
        return x * torch.sigmoid(self.frequency(1) * x) / SWISH_SLOPE

    def derivative(self, x: Tensor) -> Tensor:
        """The derivative at ``x``, of the same shape."""
        return self.linearize(self.frequency(1) * x)[1]

    def frequency(self, width: int) -> Tensor:
        r""":math:`\beta`."""
        del width
        return functional.softplus(self.raw_beta)

    def linearize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Value and derivative at ``x`` for :math:`\beta = 1`."""
        gate = torch.sigmoid(x)
        value = x * gate
        return value / SWISH_SLOPE, (gate + value * (1 - gate)) / SWISH_SLOPE


class Sine(Activation):
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

    def __init__(self, frequency: float = 1.0) -> None:
        super().__init__()
        if not frequency > 0:
            raise ValueError(f"Sine(frequency=...) must be positive; got {frequency}")
        self.log_frequency = nn.Parameter(torch.tensor(float(frequency)).log())

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
        return self.log_frequency.exp()

    def linearize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Value and derivative at ``x`` for :math:`\omega = 1`."""
        value, slope = _SineAndCosine.apply(x)  # type: ignore[no-untyped-call]
        return value, slope


class ValueAndSlope(torch.autograd.Function):
    """A function with its slope, each taken once: the backward pass needs no more than these two."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
        """Saves both."""
        del inputs
        ctx.save_for_backward(*output)


class _SineAndCosine(ValueAndSlope):
    """Autograd would take both again in the backward pass."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sin(), x.cos()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401
        sine, cosine = ctx.saved_tensors
        return torch.addcmul(grads[0] * cosine, grads[1], sine, value=-1)


@rule_for(LipSwish, Sine)  # another forward would need another derivative too
def _(module: Activation) -> LipschitzBound:
    return LipschitzBound(1.0)


class CLipSwish(nn.Module):
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

    def __init__(self, order: float = 2.0) -> None:
        super().__init__()
        if not order >= 1:
            raise LipschitzError(f"CLipSwish(order=...) must be in [1, inf]; got {order}")
        self.order = order
        self.raw_beta = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(B, channels, *spatial)`` to ``(B, 2 channels, *spatial)``."""
        gate = torch.sigmoid(functional.softplus(self.raw_beta) * x)
        return torch.cat([x * gate, x * (gate - 1)], dim=1) / _pair_constant(self.order)

    def lipschitz_bound_in(self, order: float) -> LipschitzBound:
        """The exact constant in the p-norm of this order."""
        return LipschitzBound(_pair_constant(order) / _pair_constant(self.order), order)

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


@rule_for(nn.SiLU)
def _(module: nn.SiLU) -> LipschitzBound:
    return LipschitzBound(SWISH_SLOPE)


class GroupSort(nn.Module):
    r"""Sorts groups of channels, which keeps every p-norm of a gradient; piecewise linear.

    Its derivative is a permutation, so the log-det of a flow has no second derivative of it to learn from.

    Reference: Anil, Lucas, Grosse, "Sorting out Lipschitz Function Approximation", ICML 2019.

    Args:
        group_size: Number of neighbouring channels that are sorted together, at least 1.

    Raises:
        ValueError: ``group_size`` is below 1.
        ShapeError: The channels do not divide into groups.

    Example:
        >>> GroupSort(3)(torch.tensor([[3.0, 1.0, 2.0, 9.0, 8.0, 7.0]]))
        tensor([[1., 2., 3., 7., 8., 9.]])
    """

    def __init__(self, group_size: int) -> None:
        super().__init__()
        if group_size < 1:
            raise ValueError(f"GroupSort(group_size) must be at least 1; got {group_size}")
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        """Sorts ``(B, channels, *spatial)`` along the channels."""
        if x.dim() < 2 or x.shape[1] % self.group_size:
            raise ShapeError(
                f"GroupSort({self.group_size}) expects inputs (B, channels, *spatial) whose channels divide into "
                f"groups of {self.group_size}; got {tuple(x.shape)}"
            )
        groups = x.reshape(len(x), -1, self.group_size, *x.shape[2:])
        return groups.sort(dim=2).values.reshape(x.shape)

    def extra_repr(self) -> str:
        """The size of a group."""
        return f"{self.group_size}"


class MaxMin(GroupSort):
    """`GroupSort` of pairs: the smaller, then the larger.

    Example:
        >>> MaxMin()(torch.tensor([[3.0, 1.0, 2.0, 9.0]]))
        tensor([[1., 3., 2., 9.]])
    """

    def __init__(self) -> None:
        super().__init__(2)


class FullSort(nn.Module):
    """`GroupSort` of all channels.

    Example:
        >>> FullSort()(torch.tensor([[3.0, 1.0, 2.0, 9.0]]))
        tensor([[1., 2., 3., 9.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Sorts ``(B, channels, *spatial)`` along the channels."""
        return x.sort(dim=1).values


@rule_for(GroupSort, FullSort)
def _(module: nn.Module) -> LipschitzBound:
    return LipschitzBound(1.0)
