"""Certificates: true upper bounds on Lipschitz constants, from the weights in use."""

import math
from collections.abc import Callable
from functools import partial, singledispatch
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from flowplug._errors import LipschitzError


class LipschitzBound(NamedTuple):
    r"""An upper bound :math:`L` with :math:`|g(a) - g(b)|_q \le L |a - b|_p`, and the norms :math:`p, q` it holds in.

    Attributes:
        value: The bound, a scalar tensor or float.
        norm: The order :math:`p` (2.0, ``math.inf``, ...); ``None`` if it holds in every p-norm (element-wise maps).
        codomain: The order :math:`q` where it differs; ``None`` if it is that of ``norm``.
    """

    value: Tensor | float
    norm: float | None = None
    codomain: float | None = None

    def __float__(self) -> float:
        """The value alone, without a graph."""
        return float(self.value.detach() if isinstance(self.value, Tensor) else self.value)

    def __str__(self) -> str:
        """For example ``0.97 in the inf-norm``."""
        if self.norm is None:
            return f"{float(self):.6g} in every p-norm"
        if self.codomain is None:
            return f"{float(self):.6g} in the {self.norm:g}-norm"
        return f"{float(self):.6g} from the {self.norm:g}-norm to the {self.codomain:g}-norm"


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
        LipschitzError: No bound is known for the module, its class replaces the ``forward`` of the class whose bound
            is known, or the bounds of its parts do not share norms.

    Example:
        >>> class Halve(nn.Module):
        ...     def forward(self, x):
        ...         return 0.5 * x
        >>> @lipschitz_bound.register
        ... def _(module: Halve) -> LipschitzBound:
        ...     return LipschitzBound(0.5)
        >>> lipschitz_bound(Halve())
        LipschitzBound(value=0.5, norm=None, codomain=None)
    """
    raise LipschitzError(
        f"no Lipschitz bound is known for {type(module).__module__}.{type(module).__qualname__}: build g from "
        "flowplug's Lipschitz layers, or register the bound of your module with @flowplug.lipschitz_bound.register"
    )


Rule = Callable[[Any], LipschitzBound]


def rule_for(*kinds: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Registers the bound of modules of these classes, and of subclasses that do not replace ``forward``."""

    def register(rule: Rule) -> Rule:
        for kind in kinds:
            lipschitz_bound.register(kind, partial(_apply, rule, kind))
        return rule

    return register


def _apply(rule: Rule, kind: type[nn.Module], module: nn.Module) -> LipschitzBound:
    if type(module).forward is not kind.forward:
        raise LipschitzError(
            f"{type(module).__module__}.{type(module).__qualname__} replaces the forward of {kind.__name__}, whose "
            "bound need not be its own: register one with @flowplug.lipschitz_bound.register"
        )
    return rule(module)


@runtime_checkable
class NormDependent(Protocol):
    """A module whose constant depends on the norm it is measured in."""

    def lipschitz_bound_in(self, order: float) -> LipschitzBound:
        """The bound in the p-norm of this order."""


def bound_in(module: nn.Module, order: float | None) -> LipschitzBound:
    """The bound of a module whose input is measured in the norm of this order, if the module has one in it."""
    bound = lipschitz_bound(module)  # refuses a module without one
    return module.lipschitz_bound_in(order) if order is not None and isinstance(module, NormDependent) else bound


def compose_bounds(name: str, *parts: LipschitzBound | nn.Module) -> LipschitzBound:
    r"""The bound of modules applied one after the other, each from the norm in which the last one ended.

    .. math:: |J|_{p_0 \to p_n} \le |J_n|_{p_{n-1} \to p_n} \cdots |J_1|_{p_0 \to p_1}

    Reference: Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling", NeurIPS 2019,
    eq. (11).

    Raises:
        LipschitzError: A part starts from another norm than the one before it ends in, or has no known bound.
    """
    value: Tensor | float = 1.0
    start: float | None = None
    order: float | None = None
    bounds = []
    for part in parts:
        bound = bound_in(part, order) if isinstance(part, nn.Module) else part
        bounds.append(bound)
        value = value * bound.value
        if bound.norm is None:
            continue
        if order is not None and bound.norm != order:
            listed = ", ".join(str(bound) for bound in bounds)
            raise LipschitzError(
                f"the parts of {name} are bounded in different norms ({listed}): bound all in one norm, or each from "
                "the norm in which the part before it ends"
            )
        start = bound.norm if start is None else start
        order = bound.norm if bound.codomain is None else bound.codomain
    return LipschitzBound(value, start, None if order == start else order)


@rule_for(nn.Sequential)
def _(module: nn.Sequential) -> LipschitzBound:
    return compose_bounds("nn.Sequential", *module)


@rule_for(nn.Linear)
def _(module: nn.Linear) -> LipschitzBound:
    return LipschitzBound(torch.linalg.matrix_norm(module.weight, 2), 2.0)


@rule_for(
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ReLU,
    nn.Hardtanh,
    nn.Tanh,
    nn.Softsign,
    nn.Softplus,
    nn.LogSigmoid,
)
def _(module: nn.Module) -> LipschitzBound:
    return LipschitzBound(1.0)


@rule_for(nn.Sigmoid)
def _(module: nn.Sigmoid) -> LipschitzBound:
    return LipschitzBound(0.25)


@rule_for(nn.ELU)
def _(module: nn.ELU) -> LipschitzBound:
    return LipschitzBound(max(1.0, abs(module.alpha)))


@rule_for(nn.LeakyReLU)
def _(module: nn.LeakyReLU) -> LipschitzBound:
    return LipschitzBound(max(1.0, abs(module.negative_slope)))


@rule_for(nn.PReLU)
def _(module: nn.PReLU) -> LipschitzBound:
    return LipschitzBound(module.weight.abs().amax().clamp(min=1))


def require_contraction(name: str, bound: LipschitzBound) -> None:
    """Refuses a residual branch that may not be a contraction.

    Raises:
        LipschitzError: The bound is not below 1 (NaN included), or g ends in another norm than it starts from.
    """
    if bound.codomain is not None:
        raise LipschitzError(
            f"g = {name} has the Lipschitz bound {bound}; x + g(x) needs one that ends in the norm it starts from"
        )
    value = float(bound)
    if not value < 1.0:
        hint = "its weights hold NaN" if math.isnan(value) else "scale its layers down or use flowplug.LipschitzMLP"
        raise LipschitzError(f"g = {name} has the Lipschitz bound {bound}; x + g(x) needs one below 1: {hint}")
