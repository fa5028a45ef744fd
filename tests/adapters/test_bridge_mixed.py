"""Flows in each host of its own transforms and those of the others, under the hosts' own checks."""

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import normflows as nf
import pytest
import torch
import zuko
from nflows import transforms as nt
from nflows.distributions import StandardNormal
from nflows.flows import Flow as NflowsFlow
from normflows.flows.flow_test import FlowTest
from torch import nn
from zuko.lazy import LazyComposedTransform

import flowplug as fp
from bridge_cases import maf, normflows_base, normflows_spline, rotation, rq_coupling, zuko_maf, zuko_nsf
from cases import residual
from flowplug_nflows import NflowsTransform, from_nflows
from flowplug_normflows import NormflowsFlow, from_normflows
from flowplug_zuko import ZukoTransform, from_zuko
from helpers import integral
from host_checks import ZukoChecks, check_forward_inverse, train


@dataclass(frozen=True)
class Host:
    """How to bridge a host's transforms, and how to make and use a flow of them in that host."""

    native: Callable[[int], list[Any]]  # context width -> transforms of two features
    bridge: Callable[[list[Any], int], fp.Transform]
    wrap: Callable[[fp.Transform], Any]
    flow: Callable[[list[Any]], nn.Module]  # in data-to-latent order
    log_prob: Callable[..., torch.Tensor]
    sample: Callable[[nn.Module], tuple[torch.Tensor, torch.Tensor]]


def nflows_native(context):
    return [rq_coupling(2, context or None), maf(2, context or None), nt.LULinear(2)]


def normflows_native(context):
    coupling = nf.flows.AffineCouplingBlock(nf.nets.MLP([1, 8, 2]))
    unconditional = [] if context else [coupling]
    return [normflows_spline(2, context or None), nf.flows.LULinearPermute(2), *unconditional]


def zuko_native(context):
    return [*zuko_maf(2, context).transforms, *zuko_nsf(2, context).transforms, rotation(2)]


def normflows_flow(parts):
    # Latent to data, unlike the two others.
    return nf.NormalizingFlow(normflows_base(), parts[::-1])


def normflows_log_prob(flow, x, context=None):
    if context is None:
        return flow.log_prob(x)
    return nf.ConditionalNormalizingFlow(flow.q0, flow.flows).log_prob(x, context)


HOSTS = {
    "nflows": Host(
        nflows_native,
        lambda parts, _: from_nflows(nt.CompositeTransform(parts)),
        NflowsTransform,
        lambda parts: NflowsFlow(nt.CompositeTransform(parts), StandardNormal([2])),
        lambda flow, x, context=None: flow.log_prob(x, context),
        lambda flow: flow.sample_and_log_prob(32),
    ),
    "normflows": Host(
        normflows_native,
        lambda parts, _: from_normflows(parts[::-1]),
        NormflowsFlow,
        normflows_flow,
        normflows_log_prob,
        lambda flow: flow.sample(32),
    ),
    "zuko": Host(
        zuko_native,
        lambda parts, context: from_zuko(LazyComposedTransform(*parts), context_features=context),
        ZukoTransform,
        lambda parts: zuko.flows.Flow(parts, zuko.flows.MAF(2).base),
        lambda flow, x, context=None: flow(context).log_prob(x),
        lambda flow: flow().rsample_and_log_prob((32,)),
    ),
}

PAIRS = [(guest, host) for guest in HOSTS for host in HOSTS if guest != host]

GUESTS = [*PAIRS, *(("all", host) for host in HOSTS)]


def guests(guest, context=0):
    """flowplug transforms of two features: one host's, or every host's around one of flowplug's own."""
    names = HOSTS if guest == "all" else [guest]
    cores = [HOSTS[name].bridge(HOSTS[name].native(context), context) for name in names]
    return [*cores[:1], residual(event=2, context_features=context), *cores[1:]] if guest == "all" else cores


def mixed_flow(guest, host):
    """A flow in ``host`` of its own transforms and those of the guest."""
    host = HOSTS[host]
    first, *others = host.native(0)
    return host.flow([first, *map(host.wrap, guests(guest)), *others, host.wrap(fp.ActNorm(2))])


def tolerance():
    """Of chains of the hosts' transforms."""
    return {"atol": 1e-9 if torch.get_default_dtype() == torch.float64 else 1e-3, "rtol": 0}


@pytest.mark.parametrize(("guest", "host"), PAIRS)
@pytest.mark.parametrize("context", [0, 2])
def test_a_flow_has_the_same_density_in_every_host(guest, host, context):
    x, c = torch.randn(16, 2), torch.randn(16, context) if context else None
    guest, host = HOSTS[guest], HOSTS[host]
    parts = guest.native(context)
    flow = host.flow([host.wrap(guest.bridge(parts, context))])
    torch.testing.assert_close(host.log_prob(flow, x, c), guest.log_prob(guest.flow(parts), x, c), **tolerance())


@pytest.mark.parametrize(("guest", "host"), GUESTS)
class TestMixedFlows:
    def test_they_train_and_sample(self, guest, host):
        flow, x = mixed_flow(guest, host), 1 + torch.randn(64, 2)
        train(flow, lambda: -HOSTS[host].log_prob(flow, x).mean())
        flow.zero_grad(set_to_none=True)
        sum(t.sum() for t in HOSTS[host].sample(flow)).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())

    def test_samples_come_with_their_density(self, guest, host):
        flow = mixed_flow(guest, host)
        x, log_prob = HOSTS[host].sample(flow)
        torch.testing.assert_close(HOSTS[host].log_prob(flow, x), log_prob, **tolerance())

    def test_saving_and_copying(self, guest, host):
        flow, fresh, x, buffer = mixed_flow(guest, host), mixed_flow(guest, host), torch.randn(64, 2), io.BytesIO()
        wanted = HOSTS[host].log_prob(flow, x)
        fresh.load_state_dict(flow.state_dict())
        torch.save(flow, buffer)
        buffer.seek(0)
        for twin in (fresh, copy.deepcopy(flow), torch.load(buffer, weights_only=False)):
            assert torch.equal(HOSTS[host].log_prob(twin, x), wanted)

    @pytest.mark.slow
    def test_they_normalise(self, guest, host):
        flow, log_prob = mixed_flow(guest, host).double(), HOSTS[host].log_prob
        log_prob(flow, 0.1 * torch.randn(200, 2, dtype=torch.float64))
        flow.eval()
        assert abs(integral(lambda x: log_prob(flow, x), side=601, reach=4.0) - 1) < 1e-4


class TestZukosOwnChecks(ZukoChecks):
    """Of a flow of zuko's own transforms, the two other hosts', and flowplug's."""

    @pytest.fixture
    def flow(self):
        return zuko.flows.Flow(
            [
                *zuko_maf(3, 5).transforms,
                ZukoTransform(from_nflows(nt.CompositeTransform([rq_coupling(3, 5), nt.LULinear(3)]))),
                ZukoTransform(residual(context_features=5)),
                ZukoTransform(from_normflows([normflows_spline(3, 5), nf.flows.InvertibleAffine(3)])),
            ],
            zuko.flows.MAF(3).base,
        )


@pytest.mark.parametrize("guest", ["normflows", "zuko", "all"])
def test_nflows_own_check(guest):
    for core in guests(guest):
        check_forward_inverse(NflowsTransform(core), torch.randn(10, 2), **tolerance())


class TestNormflowsOwnChecks(FlowTest):
    def test_guests(self):
        for core in [*guests("nflows"), *guests("zuko")]:
            self.checkForwardInverse(NormflowsFlow(core), torch.randn(3, 2), **tolerance())
