"""Element-wise activations with Lipschitz constant 1 in every p-norm, smooth enough for a log-det to have gradients."""

import abc
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowplug.lipschitz._bound import LipschitzBound, lipschitz_bound

# max |d/dx x sigmoid(x)| = 1.09983931..., attained at x = 2.39935728...; rounded up.
_SWISH_SLOPE: Final = 1.0998394


class Activation(nn.Module, abc.ABC):
    """An element-wise 1-Lipschitz function that knows its derivative, which gives networks a fast exact Jacobian."""

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The value, of the shape of ``x``."""

    @abc.abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """The derivative at ``x``, of the same shape."""

    def linearize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and derivative at ``x``; overridden where they share work."""
        return self(x), self.derivative(x)


@lipschitz_bound.register
def _(module: Activation) -> LipschitzBound:
    return LipschitzBound(1.0)


class LipSwish(Activation):
    r"""Swish scaled to slope 1, with a trainable sharpness.

    .. math:: \phi(x) = x \, \sigma(\beta x) / 1.09984, \qquad \beta = \operatorname{softplus}(b)

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
        return x * torch.sigmoid(functional.softplus(self.raw_beta) * x) / _SWISH_SLOPE

    def derivative(self, x: Tensor) -> Tensor:
        """The derivative at ``x``, of the same shape."""
        scaled = functional.softplus(self.raw_beta) * x
        gate = torch.sigmoid(scaled)
        return gate * (1 + scaled * (1 - gate)) / _SWISH_SLOPE


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
        frequency = self.log_frequency.exp()
        return torch.sin(frequency * x) / frequency

    def derivative(self, x: Tensor) -> Tensor:
        """The derivative at ``x``, of the same shape."""
        return torch.cos(self.log_frequency.exp() * x)

    def linearize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and derivative at ``x``."""
        value, slope = _SineAndSlope.apply(x, self.log_frequency)  # type: ignore[no-untyped-call]
        return value, slope


class _SineAndSlope(torch.autograd.Function):
    """Sine and cosine, each taken once: autograd would take both again in the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, log_frequency: Tensor) -> tuple[Tensor, Tensor]:
        frequency = log_frequency.exp()
        phase = frequency * x
        return phase.sin() / frequency, phase.cos()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        x, log_frequency, value, slope = ctx.saved_tensors
        by_value, by_slope = grads
        # d value = slope dx + (x slope - value) dw and d slope = -w^2 value (dx + x dw) for w = exp(log frequency).
        by_x = torch.addcmul(by_value * slope, by_slope * value, -(2 * log_frequency).exp())
        by_frequency = torch.dot(x.flatten(), by_x.flatten()) - torch.dot(by_value.flatten(), value.flatten())
        return by_x, by_frequency
