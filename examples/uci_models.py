"""The flows that examples/uci.py compares: a host's own, the same with flowplug's for some of its layers, pure ones.

A host flow has six layers, of which `PATTERNS` says which are flowplug's in a mixed flow. All have about as many
parameters, by width; the dense flow by depth. Patterns and networks were chosen on validation rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import nflows.distributions
import nflows.flows
import nflows.nn.nets
import nflows.transforms
import normflows as nf
import torch
import zuko
from dense import nearest
from torch import Tensor, nn

import flowplug as fp
import flowplug_nflows
import flowplug_normflows
import flowplug_zuko

Call = Callable[[nn.Module, Any], Tensor]  # of a flow with rows, or how many


class Density(nn.Module):
    """A flow and how its host calls it; ``forward``, which DistributedDataParallel watches, is the log-likelihood."""

    def __init__(self, flow: nn.Module, *, log_prob: Call, sample: Call, round_trip: Call) -> None:
        super().__init__()
        # Functions of the flow, not of its methods: a copy of the module must call its own.
        self.flow, self._log_prob, self._sample, self._round_trip = flow, log_prob, sample, round_trip

    def forward(self, x: Tensor) -> Tensor:
        """Log-likelihoods ``(rows,)`` in nats of ``x: (rows, features)``."""
        return self._log_prob(self.flow, x)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Sets what starts from data ``(rows, features)``: every Whitening and ActNorm."""
        self(x)
        self.after_update()

    def sample(self, rows: int) -> Tensor:
        """Draws ``(rows, features)``."""
        return self._sample(self.flow, rows)

    def round_trip(self, x: Tensor) -> Tensor:
        """``x`` to latent and back."""
        return self._round_trip(self.flow, x)

    def after_update(self) -> None:
        """Power iterations of normflows' own Lipschitz layers, which other flows have none of."""
        nf.utils.update_lipschitz(self.flow, 5)


def nflows_density(features: int, layers: Sequence[nn.Module]) -> Density:
    """Layers of nflows on a standard normal."""
    transform = nflows.transforms.CompositeTransform(layers)
    return Density(
        nflows.flows.Flow(transform, nflows.distributions.StandardNormal([features])),
        log_prob=lambda flow, x: flow.log_prob(x),
        sample=lambda flow, rows: flow.sample(rows),
        round_trip=lambda flow, x: flow._transform.inverse(flow._transform(x)[0])[0],
    )


def normflows_density(features: int, layers: Sequence[nn.Module]) -> Density:
    """Layers of normflows on a standard normal; it wants them from latent to data."""
    base = nf.distributions.DiagGaussian(features, trainable=False)
    return Density(
        nf.NormalizingFlow(base, list(reversed(layers))),
        log_prob=lambda flow, x: flow.log_prob(x),
        sample=lambda flow, rows: flow.sample(rows)[0],
        round_trip=lambda flow, x: flow.forward(flow.inverse(x)),
    )


def zuko_density(features: int, layers: Sequence[nn.Module]) -> Density:
    """Layers of zuko on a standard normal."""
    zeros, ones = torch.zeros(features), torch.ones(features)
    base = zuko.lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, zeros, ones, buffer=True)
    return Density(
        zuko.lazy.Flow(layers, base),
        log_prob=lambda flow, x: flow().log_prob(x),
        sample=lambda flow, rows: flow().sample((rows,)),
        round_trip=lambda flow, x: flow().transform.inv(flow().transform(x)),
    )


def spline_coupling(features: int, hidden: int, i: int) -> list[nn.Module]:
    """A rational-quadratic spline coupling after an LU layer (Durkan et al. 2019)."""

    def network(inputs: int, outputs: int) -> nn.Module:
        return nflows.nn.nets.ResidualNet(inputs, outputs, hidden_features=hidden, num_blocks=1)

    mask = nflows.utils.create_alternating_binary_mask(features, even=i % 2 == 0)
    coupling = nflows.transforms.PiecewiseRationalQuadraticCouplingTransform(
        mask, network, num_bins=8, tails="linear", tail_bound=5.0
    )
    return [nflows.transforms.LULinear(features), coupling]


def affine_coupling(features: int, hidden: int, _: int) -> list[nn.Module]:
    """An affine coupling (Dinh et al. 2017) after an LU layer."""
    half = (features + 1) // 2
    network = nf.nets.MLP([half, hidden, hidden, 2 * (features - half)], init_zeros=True)
    return [nf.flows.LULinearPermute(features), nf.flows.AffineCouplingBlock(network, scale_map="sigmoid")]


def autoregression(kind: type[zuko.flows.MAF], features: int, hidden: int, _: int) -> list[nn.Module]:
    """A masked autoregression in a random order: affine (Papamakarios et al. 2017), of splines (Durkan et al. 2019)."""
    flow = kind(features, transforms=1, hidden_features=(hidden, hidden), randperm=True)
    return list(flow.transform.transforms)


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
PATTERNS = {  # of a host's layers (h), residual (r), dense (d) or both (b) transforms, from data to latent
    "": "hhhhhh",
    "+residual": "rhhrhh",
    "+dense": "dhdhdh",
    "+residual+dense": "bhhbhh",
}


def arranged(host: Host, pattern: str, features: int, hidden: int) -> Density:
    """A host's flow with the layers of ``pattern``."""
    layers: list[nn.Module] = []
    for i, kind in enumerate(pattern):
        if kind == "h":
            layers += host.layer(features, hidden, pattern[:i].count("h"))
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


def normflows_residual(features: int, hidden: int) -> Density:
    """Residual blocks as the documentation of normflows builds them, as many and of the same widths as ours."""
    widths = [features, *residual_widths(features, hidden), features]
    layers: list[nn.Module] = []
    for _ in range(8):
        net = nf.nets.LipschitzMLP(widths, init_zeros=True, lipschitz_const=0.9)
        block = nf.flows.Residual(net)
        for unused in (block.iresblock.geom_p, block.iresblock.lamb):  # DistributedDataParallel refuses them
            unused.requires_grad_(requires_grad=False)
        layers += [nf.flows.ActNorm(features), block]
    return normflows_density(features, layers)


def dense_flow(features: int, parameters: int) -> Density:
    """Dense transforms alone (Gresele et al. 2020), as many as have so many parameters, but at most 32."""
    transforms = min(max(parameters // (features * (features + 1)), 2), 32)
    flow = flowplug_zuko.DenseFlow(features, transforms=transforms)
    whitening = flowplug_zuko.ZukoTransform(fp.Whitening(features))
    return zuko_density(features, [whitening, *flow.transform.transforms])


MODELS: dict[str, Callable[[int, int], Density]] = {  # (features, hidden)
    host + pattern: partial(arranged, HOSTS[host], PATTERNS[pattern]) for host in HOSTS for pattern in PATTERNS
} | {"residual": residual_flow, "normflows-residual": normflows_residual}
NAMES = [*MODELS, "dense"]
PLAIN = {host + pattern: host for host in HOSTS for pattern in PATTERNS if pattern} | {  # what each is judged against
    "residual": "normflows-residual"
}


def make(name: str, features: int, parameters: int) -> Density:
    """The flow of this name, one of `NAMES`, with about so many parameters."""
    if name == "dense":
        return dense_flow(features, parameters)
    return nearest(partial(MODELS[name], features), parameters)
