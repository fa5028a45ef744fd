"""The interface of an element-wise activation, and its slope."""

import abc
from typing import Any

import torch
from torch import Tensor, nn

from flowplug._functions import Function
from flowplug._reading import functional
from flowplug.branch import LipschitzBound, lipschitz_bound


class Activation(nn.Module, abc.ABC):
    """An element-wise 1-Lipschitz function that knows its derivative.

    A subclass needs no registration. An element-wise module that knows no derivative serves as well, once its bound is
    registered as ``LipschitzBound(value, elementwise=True)``: autograd finds its slope.

    Example:
        >>> class Arctan(Activation):
        ...     def forward(self, x):
        ...         return x.arctan()
        ...     def derivative(self, x):
        ...         return 1 / (1 + x.square())
        >>> g = LipschitzMLP(3, activation=Arctan)
    """

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

    def overwrite(self, x: Tensor) -> Tensor:
        """The value that `linearize` has, where no graph is built and nobody else needs ``x``, which may hold it."""
        return self(x) if self.frequency(x.shape[1]) is None else self.linearize(x)[0]


@lipschitz_bound.register
def _(module: Activation) -> LipschitzBound:
    return LipschitzBound(1.0, elementwise=True, limit=1.0)


def linearize(activation: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative at ``x`` of any element-wise module, as `Activation.linearize` has them."""
    if isinstance(activation, Activation):
        return activation.linearize(x)
    if functional():
        found, pull, *_ = torch.func.vjp(lambda at: activation(at.clone()), x)
        return found, pull(torch.ones_like(found))[0]
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        at = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        value: Tensor = activation(at.clone())  # some write on their input
        (slope,) = torch.autograd.grad(
            value, at, torch.ones_like(value), create_graph=keep, allow_unused=True, materialize_grads=True
        )
    return (value, slope) if keep else (value.detach(), slope)


class ValueAndSlope(Function):
    """A function with its slope, each taken once: the backward pass needs no more than these two.

    Without derivatives in forward mode: under `torch.func` activations leave theirs to autograd.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
        """Saves what is returned."""
        del inputs
        ctx.save_for_backward(*output)
