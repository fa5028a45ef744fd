"""The flows that examples/variational.py compares: a host's own, the same with flowplug's for some layers, a pure one.

Layers go from latent to data, and each stands so that this is its cheap direction: a draw brings its log-density, and
takes no solver. Patterns and networks were chosen on a seed that is not reported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import normflows as nf
import torch
import zuko
from torch import Tensor, nn

import flowplug as fp
import flowplug_normflows
import flowplug_zuko
from common.densities import Model, nearest, standard_normal
from common.layers import autoregression
from flowplug import hosts
from variational.targets import Target

Call = Callable[[Any, Tensor], tuple[Tensor, Tensor]]  # of a flow; points and log-dets
START_ROWS = 2_000  # latent points
WIDTHS = (64,)  # of the hidden layers of a residual transform in a mixture
PURE = 4  # residual transforms of a flow of nothing else


class Sampler(Model):
    """A flow and its target; ``forward`` is the log-weight of the draw that comes of a latent point.

    Args:
        flow: The host's.
        target: What it is to draw from.
        to_data: From latent to data, with the log-det of that.
        to_latent: Back.
    """

    def __init__(self, flow: nn.Module, target: Target, *, to_data: Call, to_latent: Call) -> None:
        super().__init__()
        self.flow, self.target, self._to_data, self._to_latent = flow, target, to_data, to_latent

    def forward(self, z: Tensor) -> Tensor:
        r"""Log-weights ``(rows,)`` of draws, :math:`\log \tilde p(x) - \log q(x)`; their mean is the evidence bound."""
        return self.weighted(z)[1]

    def weighted(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Draws ``(rows, features)`` that come of latent points, and their log-weights ``(rows,)`` in nats."""
        x, ladj = self._to_data(self.flow, z)
        return x, self.target.log_prob(x) - standard_normal(z) + ladj

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-densities ``(rows,)`` in nats of ``x: (rows, features)``."""
        z, ladj = self._to_latent(self.flow, x)
        return standard_normal(z) + ladj

    @torch.no_grad()
    def start(self, z: Tensor) -> None:
        """Sets what starts from data by latent points: every ActNorm."""
        with hosts.starting(self.flow):
            self(z)


def of_normflows(target: Target, layers: list[nn.Module]) -> Sampler:
    """Layers of normflows on a standard normal."""
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(target.features, trainable=False), layers)
    return Sampler(
        flow,
        target,
        to_data=lambda flow, z: flow.forward_and_log_det(z),
        to_latent=lambda flow, x: flow.inverse_and_log_det(x),
    )


def of_zuko(target: Target, layers: list[nn.Module]) -> Sampler:
    """Layers of zuko, a transformation whose end is the data."""
    return Sampler(
        zuko.lazy.LazyComposedTransform(*layers),
        target,
        to_data=lambda flow, z: flow().call_and_ladj(z),
        to_latent=lambda flow, x: flow().inv.call_and_ladj(x),
    )


def affine_coupling(features: int, hidden: int, _: int) -> list[nn.Module]:
    """An affine coupling of normflows (Dinh et al. 2017), and a swap of the halves."""
    half = (features + 1) // 2
    network = nf.nets.MLP([half, hidden, hidden, 2 * (features - half)], init_zeros=True)
    return [nf.flows.AffineCouplingBlock(network), nf.flows.Permute(features, mode="swap")]


@dataclass(frozen=True)
class Host:
    """A host's layer ``(features, hidden, index)``, its adapter of a flowplug transform, and its flow of layers."""

    layer: Callable[[int, int, int], list[nn.Module]]
    wrap: Callable[[fp.Transform], nn.Module]
    sampler: Callable[[Target, list[nn.Module]], Sampler]


HOSTS = {
    "realnvp": Host(affine_coupling, partial(flowplug_normflows.NormflowsFlow, reverse=False), of_normflows),
    "nsf": Host(partial(autoregression, zuko.flows.NSF), flowplug_zuko.ZukoTransform, of_zuko),
}
MIXTURES = {  # of a host's layers (h), residual (r), dense (d) or both (b) transforms, from latent to data
    "realnvp": {"": "hhhhhhhh", "-4": "hhhh", "+residual": "rhrh", "+residual+dense": "bhbh"},
    "nsf": {"": "hh", "+residual": "hrh"},
}


def arranged(host: Host, pattern: str, target: Target, hidden: int) -> Sampler:
    """A host's flow with the layers of ``pattern``."""
    features, layers = target.features, list[nn.Module]()
    for i, kind in enumerate(pattern):
        if kind == "h":
            layers += host.layer(features, hidden, pattern[:i].count("h"))
        if kind in "db":
            layers.append(host.wrap(fp.DenseTransform(features, activation=None, init=fp.ScaledIdentity())))
        if kind in "rb":
            layers.append(host.wrap(fp.ResidualTransform(fp.LipschitzMLP(features, WIDTHS))))
    return host.sampler(target, layers)


def residual_flow(target: Target, hidden: int) -> Sampler:
    """Residual transforms alone, each behind an ActNorm and a dense one."""
    features, layers = target.features, list[fp.Transform]()
    for _ in range(PURE):
        dense = fp.DenseTransform(features, activation=None, init=fp.ScaledIdentity())
        g = fp.LipschitzMLP(features, (hidden, hidden))
        layers += [fp.ActNorm(features), dense, fp.ResidualTransform(g)]
    return of_zuko(target, [flowplug_zuko.ZukoTransform(layer) for layer in layers])


MODELS: dict[str, Callable[[Target, int], Sampler]] = {
    host + mixture: partial(arranged, HOSTS[host], pattern)
    for host, mixtures in MIXTURES.items()
    for mixture, pattern in mixtures.items()
} | {"residual": residual_flow}
PLAIN = {host + mixture: host for host, mixtures in MIXTURES.items() for mixture in mixtures if mixture} | {
    "residual": "realnvp",
}  # what each is judged against


def make(name: str, target: Target, parameters: int) -> Sampler:
    """The flow of this name on a target, with about so many parameters."""
    return nearest(partial(MODELS[name], target), parameters)
