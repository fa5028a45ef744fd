"""The flows that examples/uci.py compares: a host's own, the same with flowplug's for some of its layers, pure ones.

A host flow has six layers, of which `PATTERNS` says which are flowplug's in a mixed flow. All have about as many
parameters, by width; the dense flow by depth. Patterns and networks were chosen on validation rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import zuko
from torch import nn

import flowplug as fp
import flowplug_nflows
import flowplug_normflows
import flowplug_zuko
from common.densities import Density, nearest, nflows_density, normflows_density, zuko_density
from common.layers import affine_coupling, autoregression, residual_block, spline_coupling


@dataclass(frozen=True)
class Host:
    """A host's layer ``(features, hidden, index)``, its adapter of a flowplug transform, and its flow of layers."""

    layer: Callable[[int, int, int], list[nn.Module]]
    wrap: Callable[[fp.Transform], nn.Module]
    density: Callable[[int, Sequence[nn.Module]], Density]


HOSTS = {
    "zuko-nsf": Host(partial(autoregression, zuko.flows.NSF), flowplug_zuko.ZukoTransform, zuko_density),
    "zuko-maf": Host(partial(autoregression, zuko.flows.MAF), flowplug_zuko.ZukoTransform, zuko_density),
    "nflows-rqs": Host(spline_coupling, flowplug_nflows.NflowsTransform, nflows_density),
    "normflows-realnvp": Host(affine_coupling, flowplug_normflows.NormflowsFlow, normflows_density),
}
MIXTURES = {  # of a host's layers (h), residual (r), dense (d) or both (b) transforms, from data to latent
    "": "hhhhhh",
    "+residual": "rhhrhh",
    "+dense": "dhdhdh",
    "+residual+dense": "bhhbhh",
}
MARGINAL = "+marginal"  # behind the name of a flow: splines of the features (m) before all of its layers
PATTERNS = MIXTURES | {name + MARGINAL: f"m{pattern}" for name, pattern in MIXTURES.items()}


def arranged(host: Host, pattern: str, features: int, hidden: int) -> Density:
    """A host's flow with the layers of ``pattern``."""
    layers: list[nn.Module] = []
    for i, kind in enumerate(pattern):
        if kind == "h":
            layers += host.layer(features, hidden, pattern[:i].count("h"))
            continue
        if kind == "m":
            layers.append(host.wrap(fp.MarginalGaussianization(features)))
            continue
        if kind == "r":
            layers.append(host.wrap(fp.ActNorm(features)))
        else:
            dense = fp.DenseTransform(features, activation=None, init=fp.ScaledIdentity())
            layers += [host.wrap(fp.Whitening(features)), host.wrap(dense)]
        if kind != "d":
            layers.append(host.wrap(fp.ResidualTransform(fp.LipschitzMLP(features, (hidden,)))))
    return host.density(features, layers)


def residual_widths(features: int, hidden: int) -> tuple[int, ...]:
    """Hidden layers of both kinds of pure residual flow: two on narrow tables, where a single one would be slow."""
    return (hidden,) if features > 20 else (hidden, hidden)


def residual_flow(features: int, hidden: int) -> Density:
    """Eight residual transforms, at their defaults."""
    flow = flowplug_zuko.ResidualFlow(features, transforms=8, hidden_features=residual_widths(features, hidden))
    return zuko_density(features, list(flow.transform.transforms))


def marginal_residual(features: int, hidden: int) -> Density:
    """The same behind splines of the features."""
    flow = flowplug_zuko.ResidualFlow(features, transforms=8, hidden_features=residual_widths(features, hidden))
    marginals = flowplug_zuko.ZukoTransform(fp.MarginalGaussianization(features))
    return zuko_density(features, [marginals, *flow.transform.transforms])


def normflows_residual(features: int, hidden: int) -> Density:
    """Residual blocks as the documentation of normflows builds them, as many and of the same widths as ours."""
    widths = [features, *residual_widths(features, hidden), features]
    return normflows_density(features, [layer for _ in range(8) for layer in residual_block(widths)])


def dense_flow(features: int, parameters: int) -> Density:
    """Dense transforms alone (Gresele et al. 2020), as many as have so many parameters, but at most 32."""
    transforms = min(max(parameters // (features * (features + 1)), 2), 32)
    flow = flowplug_zuko.DenseFlow(features, transforms=transforms)
    whitening = flowplug_zuko.ZukoTransform(fp.Whitening(features))
    return zuko_density(features, [whitening, *flow.transform.transforms])


MODELS: dict[str, Callable[[int, int], Density]] = {  # (features, hidden)
    host + pattern: partial(arranged, HOSTS[host], PATTERNS[pattern]) for host in HOSTS for pattern in PATTERNS
} | {"residual": residual_flow, "residual+marginal": marginal_residual, "normflows-residual": normflows_residual}
NAMES = [*MODELS, "dense"]
EAGER = ("normflows-residual",)  # torch.compile refuses its double backward
PLAIN = {host + pattern: host for host in HOSTS for pattern in PATTERNS if pattern} | {  # what each is judged against
    "residual": "normflows-residual",
    "residual+marginal": "normflows-residual",
}


def make(name: str, features: int, parameters: int) -> Density:
    """The flow of this name, one of `NAMES`, with about so many parameters."""
    if name == "dense":
        return dense_flow(features, parameters)
    return nearest(partial(MODELS[name], features), parameters)
