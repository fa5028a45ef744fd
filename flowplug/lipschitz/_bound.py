"""Certificates: true upper bounds on Lipschitz constants, from the weights in use."""

import math
from functools import singledispatch
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowplug._errors import LipschitzError


class LipschitzBound(NamedTuple):
    r"""An upper bound :math:`L` with :math:`|g(a) - g(b)|_p \le L |a - b|_p`, and the norm :math:`p` it holds in.

    Attributes:
        value: The bound, a scalar tensor or float.
        norm: The order :math:`p` (2.0, ``math.inf``, ...); ``None`` if it holds in every p-norm (element-wise maps).
    """

    value: Tensor | float
    norm: float | None = None

    def __float__(self) -> float:
        """The value alone, without a graph."""
        return float(self.value.detach() if isinstance(self.value, Tensor) else self.value)

    def __str__(self) -> str:
        """For example ``0.97 in the inf-norm``."""
        return f"{float(self):.6g} in {'every p-norm' if self.norm is None else f'the {self.norm:g}-norm'}"


@singledispatch
def lipschitz_bound(module: nn.Module) -> LipschitzBound:
    r"""A true upper bound on the Lipschitz constant of a module, and the norm it holds in.

    Computed from the weights as they are now, so it needs no update calls and cannot go stale. The bound of a module
    with context concerns its dependence on the input only. A module of your own is accepted once its bound is
    registered (see the example); an unknown one is refused rather than guessed.

    Args:
        module: A flowplug network, a known module of torch, an ``nn.Sequential`` of these, or a registered one.

    Returns:
        The `LipschitzBound`.

    Raises:
        LipschitzError: No bound is known for the module, or the bounds of its parts hold in different norms.

    Example:
        >>> class Halve(nn.Module):
        ...     def forward(self, x):
        ...         return 0.5 * x
        >>> @lipschitz_bound.register
        ... def _(module: Halve) -> LipschitzBound:
        ...     return LipschitzBound(0.5)
        >>> lipschitz_bound(Halve())
        LipschitzBound(value=0.5, norm=None)
    """
    raise LipschitzError(
        f"no Lipschitz bound is known for {type(module).__module__}.{type(module).__qualname__}: build g from "
        "flowplug's Lipschitz layers, or register the bound of your module with @flowplug.lipschitz_bound.register"
    )


def compose_bounds(name: str, *bounds: LipschitzBound) -> LipschitzBound:
    """The bound of modules applied one after the other: the product, in their common norm.

    Raises:
        LipschitzError: The bounds hold in different norms.
    """
    norms = {bound.norm for bound in bounds} - {None}
    if len(norms) > 1:
        listed = ", ".join(str(bound) for bound in bounds)
        raise LipschitzError(f"the parts of {name} are bounded in different norms ({listed}): bound all in one norm")
    value: Tensor | float = 1.0
    for bound in bounds:
        value = value * bound.value
    return LipschitzBound(value, norms.pop() if norms else None)


@lipschitz_bound.register
def _(module: nn.Sequential) -> LipschitzBound:
    return compose_bounds("nn.Sequential", *(lipschitz_bound(part) for part in module))


@lipschitz_bound.register
def _(module: nn.Linear) -> LipschitzBound:
    return LipschitzBound(torch.linalg.matrix_norm(module.weight, 2), 2.0)


@lipschitz_bound.register(nn.Identity)
@lipschitz_bound.register(nn.Flatten)
@lipschitz_bound.register(nn.Unflatten)
@lipschitz_bound.register(nn.ReLU)
@lipschitz_bound.register(nn.Tanh)
@lipschitz_bound.register(nn.Softplus)
def _(module: nn.Module) -> LipschitzBound:
    return LipschitzBound(1.0)


@lipschitz_bound.register
def _(module: nn.Sigmoid) -> LipschitzBound:
    return LipschitzBound(0.25)


@lipschitz_bound.register
def _(module: nn.ELU) -> LipschitzBound:
    return LipschitzBound(max(1.0, abs(module.alpha)))


@lipschitz_bound.register
def _(module: nn.LeakyReLU) -> LipschitzBound:
    return LipschitzBound(max(1.0, abs(module.negative_slope)))


def require_contraction(name: str, bound: LipschitzBound) -> None:
    """Refuses a residual branch that may not be a contraction.

    Raises:
        LipschitzError: The bound is not below 1 (NaN included).
    """
    value = float(bound)
    if not value < 1.0:
        hint = "its weights hold NaN" if math.isnan(value) else "scale its layers down or use flowplug.LipschitzMLP"
        raise LipschitzError(f"g = {name} has the Lipschitz bound {bound}; x + g(x) needs one below 1: {hint}")
