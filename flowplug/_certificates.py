"""The Lipschitz bounds of transforms, as maps from data to latent, so that what is built of them has one, too."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch

from flowplug._actnorm import ActNorm
from flowplug._composition import ComposedTransform
from flowplug._errors import LipschitzError
from flowplug._precision import at_least_single
from flowplug._residual import ResidualTransform
from flowplug._transform import Transform
from flowplug._whitening import Whitening
from flowplug.branch import LipschitzBound, compose_bounds, rule_for
from flowplug.dense import DenseConv1x1, DenseTransform, SmoothLeakyReLU, TanhLinear
from flowplug.images import Reshape, Squeeze

Rule = TypeVar("Rule", bound=Callable[[Any], LipschitzBound])


def _rule_of(*kinds: type[Transform]) -> Callable[[Rule], Rule]:
    """Registers the bound of transforms of these classes, and of subclasses that do not replace what they compute."""

    def register(rule: Rule) -> Rule:
        for kind in kinds:
            rule_for(kind)(partial(_apply, rule, kind))
        return rule

    return register


def _apply(rule: Rule, kind: type[Transform], transform: Transform) -> LipschitzBound:
    for name in ("_forward", "_through"):
        if getattr(type(transform), name, None) is not getattr(kind, name, None):
            raise LipschitzError(
                f"{type(transform).__module__}.{type(transform).__qualname__} replaces the {name} of {kind.__name__}, "
                "whose bound need not be its own: register one with @flowplug.lipschitz_bound.register"
            )
    return rule(transform)


@_rule_of(ResidualTransform)
def _(module: ResidualTransform) -> LipschitzBound:
    g = module.lipschitz
    if g.codomain is not None:
        raise LipschitzError(f"x + g(x) has no known bound, as that of g = {type(module.g).__name__} is {g}")
    return LipschitzBound(1 + g.value, g.domain, limit=1 + g.limit)


@_rule_of(ActNorm)
def _(module: ActNorm) -> LipschitzBound:
    return LipschitzBound((module.log_scale.exp() / module.std).amax())


@_rule_of(Whitening)
def _(module: Whitening) -> LipschitzBound:
    return LipschitzBound(torch.linalg.matrix_norm(at_least_single(module.weight), 2), 2.0)


@_rule_of(SmoothLeakyReLU, TanhLinear)
def _(module: SmoothLeakyReLU | TanhLinear) -> LipschitzBound:
    return LipschitzBound(module.slopes[1], elementwise=True)


@_rule_of(DenseTransform, DenseConv1x1)
def _(module: DenseTransform) -> LipschitzBound:
    matrix = LipschitzBound(torch.linalg.matrix_norm(at_least_single(module.weight), 2), 2.0)
    activations = [] if module.activation is None else [module.activation]
    return compose_bounds(type(module).__name__, matrix, *activations)


@_rule_of(Squeeze, Reshape)
def _(module: Squeeze | Reshape) -> LipschitzBound:
    return LipschitzBound(1.0)


@_rule_of(ComposedTransform)
def _(module: ComposedTransform) -> LipschitzBound:
    return compose_bounds(type(module).__name__, *module.transforms)
