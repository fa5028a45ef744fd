"""Certificates: true upper bounds on Lipschitz constants, from the weights in use."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial, singledispatch, wraps
from typing import Any, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn

from flowplug._arguments import require_instance
from flowplug._errors import LipschitzError
from flowplug._precision import full_precision
from flowplug._reading import first_parameter
from flowplug.branch._parts import require_plain

Rules = TypeVar("Rules", bound=Callable[..., "LipschitzBound"])
Rule = Callable[[Any], "LipschitzBound"]


class LipschitzBound(NamedTuple):
    r"""An upper bound :math:`L` with :math:`|g(a) - g(b)|_q \le L |a - b|_p`, and the norms :math:`p, q` it holds in.

    Attributes:
        value: The bound, a scalar tensor or float.
        domain: The order :math:`p` (2.0, ``math.inf``, ...); ``None`` if it holds in every p-norm.
        codomain: The order :math:`q` where it differs; ``None`` if it is that of ``domain``.
        elementwise: Whether every entry of the output depends on the same entry of the input alone, so that ``value``
            bounds each slope. `PathNorm` is tighter for such activations, and exact Jacobians are faster.
        limit: The largest ``value`` that any parameters can give, inf if none is known. Below 1, `ResidualTransform`
            need not measure the bound while it trains. A number that belongs to a module without parameters is its
            own limit.

    Example:
        >>> str(LipschitzBound(0.97, math.inf))
        '0.97 in the inf-norm'
    """

    value: Tensor | float
    domain: float | None = None
    codomain: float | None = None
    elementwise: bool = False
    limit: float = math.inf

    def __float__(self) -> float:
        """The value alone, without a graph."""
        return float(self.value.detach() if isinstance(self.value, Tensor) else self.value)

    def __str__(self) -> str:
        """For example ``0.97 in the inf-norm``."""
        if self.domain is None:
            return f"{float(self):.6g} in every p-norm"
        if self.codomain is None:
            return f"{float(self):.6g} in the {self.domain:g}-norm"
        return f"{float(self):.6g} from the {self.domain:g}-norm to the {self.codomain:g}-norm"

    def dual(self) -> LipschitzBound:
        """The bound, without a graph, of the transposed Jacobians: in the dual norms, from q' to p'."""
        start, end = (None if order is None else dual_order(order) for order in (self.domain, self.codomain))
        return LipschitzBound(float(self), start) if end is None else LipschitzBound(float(self), end, start)


def dual_order(order: float) -> float:
    """The order q of the dual norm, ``1 / p + 1 / q = 1``."""
    if order == 1:
        return math.inf
    return 1.0 if math.isinf(order) else order / (order - 1)


def outside_autocast(module: nn.Module) -> AbstractContextManager[Any]:
    """In the precision of the weights, whatever a rule or a norm computes."""
    parameter = first_parameter(module)
    return nullcontext() if parameter is None else full_precision(parameter)


def _of_modules_as_they_are_called(rules: Rules) -> Rules:
    """Whatever rule applies, one of the user's included: of plain parts only, and outside autocast."""
    dispatching: Any = rules
    # The compiler does not follow the dispatch of functools, which is needed for virtual subclasses alone.
    known: dict[type, Rule] = {}

    def rule_of(kind: type) -> Rule:
        return next((known[base] for base in kind.__mro__ if base in known), None) or dispatching.dispatch(kind)

    def register(kind: Any, rule: Rule | None = None) -> Any:  # noqa: ANN401 -- that of singledispatch
        if rule is None and isinstance(kind, type):
            return partial(register, kind)
        registered = dispatching.register(kind, rule)
        known.update({base: found for base, found in dispatching.registry.items() if base is not object})
        return registered

    @wraps(rules)
    def bound(module: nn.Module) -> LipschitzBound:
        if torch.compiler.is_compiling():  # a branch looks at the parts of its g itself
            return rule_of(type(module))(module)
        require_instance("lipschitz_bound", "module", module, nn.Module, "LipschitzMLP(2)")
        require_plain(module)
        with outside_autocast(module):
            found = rule_of(type(module))(module)
        if not isinstance(found, LipschitzBound):
            raise LipschitzError(
                f"the rule registered for {type(module).__name__} must return a LipschitzBound, such as "
                f"LipschitzBound(0.5); got {found!r}"
            )
        if isinstance(found.value, Tensor) and found.value.is_meta:
            raise LipschitzError(
                f"{type(module).__name__} has weights on the meta device, without values or a bound: load them first"
            )
        if found.limit < math.inf or isinstance(found.value, Tensor) or first_parameter(module) is not None:
            return found
        return found._replace(limit=found.value)  # a constant

    bound.register = register  # type: ignore[attr-defined]
    return cast(Rules, bound)


@_of_modules_as_they_are_called
@singledispatch
def lipschitz_bound(module: nn.Module) -> LipschitzBound:
    r"""A true upper bound on the Lipschitz constant of a module, and the norm it holds in.

    Computed from the weights as they are now, so it needs no update calls and cannot go stale. The bound of a module
    with context concerns its dependence on the input only. A module of your own is accepted once its bound is
    registered (see the example); an unknown one is refused rather than guessed. A rule holds for subclasses too;
    registered by `flowplug.branch.rule_for`, only for those that keep its ``forward``.

    Args:
        module: A flowplug network or transform (from data to latent), a known module of torch, an ``nn.Sequential`` of
            these, or a registered one.

    Returns:
        The `LipschitzBound`.

    Raises:
        LipschitzError: No bound is known for the module, its class replaces the ``forward`` of the class whose bound
            is known, a part has hooks or a ``forward`` of the instance's own (old ``weight_norm``, ``prune``, ...), the
            bounds of its parts do not share norms, or its weights are on the meta device.

    Example:
        >>> class Halve(nn.Module):
        ...     def forward(self, x):
        ...         return 0.5 * x
        >>> @lipschitz_bound.register
        ... def _(module: Halve) -> LipschitzBound:
        ...     return LipschitzBound(0.5, elementwise=True)
        >>> str(lipschitz_bound(Halve()))
        '0.5 in every p-norm'
    """
    raise LipschitzError(
        f"no Lipschitz bound is known for {type(module).__module__}.{type(module).__qualname__}: build g from "
        "flowplug's Lipschitz layers, or register the bound of your module with @flowplug.lipschitz_bound.register"
    )


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
    general = lipschitz_bound(module)  # refuses a module without one
    # Not by isinstance, which takes ten times as long for a protocol.
    measure: Callable[[float], LipschitzBound] | None = getattr(module, "lipschitz_bound_in", None)
    return general if order is None or measure is None else measure(order)


def compose_bounds(name: str, *parts: LipschitzBound | nn.Module) -> LipschitzBound:
    r"""The bound of modules applied one after the other, each from the norm in which the last one ended.

    .. math:: |J|_{p_0 \to p_n} \le |J_n|_{p_{n-1} \to p_n} \cdots |J_1|_{p_0 \to p_1}

    Reference: Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling", NeurIPS 2019,
    eq. (11).

    Raises:
        LipschitzError: A part starts from another norm than the one before it ends in, or has no known bound.
    """
    bounds: list[LipschitzBound] = []
    start: float | None = None
    order: float | None = None
    for part in parts:
        bounds.append(bound_in(part, order) if isinstance(part, nn.Module) else part)
        domain, codomain = bounds[-1].domain, bounds[-1].codomain
        if domain is None:
            continue
        if order not in (None, domain):
            listed = ", ".join(map(str, bounds))
            raise LipschitzError(
                f"the parts of {name} are bounded in different norms ({listed}): bound all in one norm, or each from "
                "the norm in which the part before it ends"
            )
        start = domain if start is None else start
        order = domain if codomain is None else codomain
    value = math.prod((bound.value for bound in bounds), start=1.0)
    elementwise = all(bound.elementwise for bound in bounds)
    limit = math.prod(bound.limit for bound in bounds)
    return LipschitzBound(value, start, None if order == start else order, elementwise, limit)


def on_meta(module: nn.Module) -> bool:
    """Whether weights have no values yet, so that no bound can be measured before they are loaded."""
    return any(parameter.is_meta for parameter in module.parameters())


def require_contraction(name: str, lipschitz: LipschitzBound) -> None:
    """Refuses a residual branch that may not be a contraction.

    Raises:
        LipschitzError: The bound is not below 1 (NaN included), or g ends in another norm than it starts from.
    """
    value = float(lipschitz)
    if lipschitz.codomain is None and value < 1.0:
        return
    given = f"g = {name} has the Lipschitz bound {lipschitz}; x + g(x) needs one"
    if lipschitz.codomain is not None:
        raise LipschitzError(f"{given} that ends in the norm it starts from")
    hint = "its weights hold NaN" if math.isnan(value) else "scale its layers down or use flowplug.LipschitzMLP"
    raise LipschitzError(f"{given} below 1: {hint}")
