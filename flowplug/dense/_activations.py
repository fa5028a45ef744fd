"""Element-wise bijections of the real line, inverted by a safeguarded Newton iteration."""

from __future__ import annotations

import abc
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flowplug._arguments import require_ints, require_numbers
from flowplug._errors import NotConverged, ShapeError
from flowplug._functions import Function
from flowplug._precision import at_least_single
from flowplug._transform import Transform


class Elementwise(Transform):
    """An increasing function applied to every entry; subclasses give it, its slope and bounds on the slope.

    Attributes:
        slopes: Lower and upper bound on the slope, both positive.
    """

    slopes: tuple[float, float]
    max_steps = 200

    def __init__(self, event_dim: int) -> None:
        super().__init__()
        require_ints(type(self).__name__, event_dim=event_dim)
        if event_dim < 0:
            raise ShapeError(f"{type(self).__name__}(event_dim=...) must be at least 0; got {event_dim}")
        self.event_dim = event_dim

    @abc.abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """The function, of the shape of ``x``."""

    @abc.abstractmethod
    def slope(self, x: Tensor) -> Tensor:
        """Its derivative, of the shape of ``x``."""

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        single = at_least_single(x)
        return self.value(single).to(x.dtype), self._ladj(single).to(x.dtype)

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        single: Tensor = _Root.run(at_least_single(y), self)
        return single.to(y.dtype), -self._ladj(single).to(y.dtype)

    def _ladj(self, x: Tensor) -> Tensor:
        logs = self.slope(x).log()
        return logs.flatten(x.dim() - self.event_dim).sum(-1) if self.event_dim else logs

    @torch.no_grad()
    def _solve(self, y: Tensor) -> Tensor:
        """Newton's iteration inside a shrinking bracket, until every entry moves, or is off, by rounding alone."""
        least, most = self.slopes
        gap = y - self.value(torch.zeros_like(y))
        # The slope lies between its bounds, so the solution does between gap / most and gap / least.
        low, high = torch.minimum(gap / most, gap / least), torch.maximum(gap / most, gap / least)
        largest, epsilon = torch.finfo(y.dtype).max, torch.finfo(y.dtype).eps
        low, high = low.clamp(min=-largest), high.clamp(max=largest)
        x = torch.lerp(low, high, 0.5)  # unlike their sum, it does not overflow
        for _ in range(self.max_steps):
            error = self.value(x) - y
            low, high = torch.where(error <= 0, x, low), torch.where(error >= 0, x, high)
            step = x - error / self.slope(x)
            small = error.abs() <= 2 * epsilon * (1 + y.abs())
            # A solution at an end of the bracket may be stepped past by rounding.
            following = torch.where((step.clamp(low, high) == step) | small, step, torch.lerp(low, high, 0.5))
            done = small | ((following - x).abs() <= 4 * epsilon * (1 + x.abs()))
            x = following
            if done.all():
                return x
        raise NotConverged(
            f"{type(self).__name__} was not inverted in {self.max_steps} Newton steps for {int((~done).sum())} "
            f"entries; the largest error is {float((self.value(x) - y).abs().max()):.3g}"
        )


class _Root(Function):
    """The solution, with the derivatives of the inverse function; entries are solved for on their own."""

    @staticmethod
    def forward(y: Tensor, activation: Elementwise) -> Tensor:
        return activation._solve(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
        ctx.activation = inputs[1]
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return grads[0] / ctx.activation.slope(*ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:  # noqa: ANN401
        tangent: Tensor = tangents[0] / ctx.activation.slope(*ctx.saved_tensors)
        return tangent

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], y: Tensor, activation: Elementwise) -> tuple[Tensor, int]:  # noqa: ANN401
        del info
        root: Tensor = _Root.run(y, activation)
        return root, in_dims[0]


class SmoothLeakyReLU(Elementwise):
    r"""A smooth leaky ReLU.

    .. math:: \sigma(x) = a x + (1 - a) \log(1 + e^x)

    Reference: Gresele, Fissore, Javaloy, Schölkopf, Hyvärinen, "Relative gradient optimization of the Jacobian term in
    unsupervised deep learning", NeurIPS 2020, eq. (34).

    Args:
        negative_slope: The slope a for large negative x, in (0, 1].
        event_dim: Number of event dimensions, 0 for entries that are events of their own.

    Raises:
        ShapeError: ``event_dim`` is below 0.
        ValueError: ``negative_slope`` is not in (0, 1].

    Example:
        >>> transform = SmoothLeakyReLU(0.3)
        >>> x = torch.randn(5, 2)
        >>> torch.allclose(transform.inverse(transform(x)[0])[0], x, atol=1e-5)
        True
    """

    def __init__(self, negative_slope: float = 0.3, *, event_dim: int = 1) -> None:
        super().__init__(event_dim)
        require_numbers("SmoothLeakyReLU", negative_slope=negative_slope)
        self.negative_slope = float(negative_slope)
        if not 0 < self.negative_slope <= 1:
            raise ValueError(f"SmoothLeakyReLU(negative_slope=...) must be in (0, 1]; got {negative_slope}")
        self.slopes = (self.negative_slope, 1.0)

    def value(self, x: Tensor) -> Tensor:
        """The function, of the shape of ``x``."""
        softplus = functional.softplus(x, threshold=50)
        return torch.add(self.negative_slope * x, softplus, alpha=1 - self.negative_slope)

    def extra_repr(self) -> str:
        """Slope, and event_dim."""
        return f"{self.negative_slope}, event_dim={self.event_dim}"

    def slope(self, x: Tensor) -> Tensor:
        """Its derivative, of the shape of ``x``."""
        return self.negative_slope + (1 - self.negative_slope) * torch.sigmoid(x)


class TanhLinear(Elementwise):
    r"""A hyperbolic tangent plus a line.

    .. math:: \sigma(x) = \tanh(a x) + b x

    Reference: Gresele, Fissore, Javaloy, Schölkopf, Hyvärinen, "Relative gradient optimization of the Jacobian term in
    unsupervised deep learning", NeurIPS 2020, eq. (35).

    Args:
        steepness: The factor a inside, positive.
        linear: The slope b of the line, positive.
        event_dim: Number of event dimensions, 0 for entries that are events of their own.

    Raises:
        ShapeError: ``event_dim`` is below 0.
        ValueError: ``steepness`` or ``linear`` is not positive.

    Example:
        >>> y, ladj = TanhLinear()(torch.zeros(5, 2))
        >>> ladj[0]  # 2 log 1.1
        tensor(0.1906)
    """

    def __init__(self, steepness: float = 1.0, linear: float = 0.1, *, event_dim: int = 1) -> None:
        super().__init__(event_dim)
        require_numbers("TanhLinear", steepness=steepness, linear=linear)
        steepness, linear = float(steepness), float(linear)
        if not (0 < steepness < math.inf and 0 < linear < math.inf):
            raise ValueError(f"TanhLinear needs positive steepness and linear; got {steepness} and {linear}")
        self.steepness, self.linear, self.slopes = steepness, linear, (linear, linear + steepness)

    def value(self, x: Tensor) -> Tensor:
        """The function, of the shape of ``x``."""
        return torch.tanh(self.steepness * x) + self.linear * x

    def extra_repr(self) -> str:
        """Steepness and line, and event_dim."""
        return f"{self.steepness}, linear={self.linear}, event_dim={self.event_dim}"

    def slope(self, x: Tensor) -> Tensor:
        """Its derivative, of the shape of ``x``."""
        return self.steepness * (1 - torch.tanh(self.steepness * x).square()) + self.linear
