"""Whole flows of each host start from data by name, and forget it."""

import normflows as nf
import pytest
import torch
import zuko
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import CompositeTransform, MaskedAffineAutoregressiveTransform
from torch import nn
from zuko.distributions import DiagNormal
from zuko.lazy import UnconditionalDistribution

import flowplug as fp
import flowplug_nflows
import flowplug_normflows
import flowplug_zuko


def parts():
    """Parts of flowplug, one of them composed, with a transform of another host among them."""
    own = MaskedAffineAutoregressiveTransform(3, hidden_features=4)
    composite = CompositeTransform([flowplug_nflows.NflowsTransform(fp.Whitening(3)), own])
    bridged = flowplug_nflows.from_nflows(composite)
    return [fp.ActNorm(3), fp.ComposedTransform(bridged, fp.DenseTransform(3)), fp.ActNorm(3)]


def nflows_flow(context):
    own = MaskedAffineAutoregressiveTransform(3, hidden_features=4, context_features=context or None)
    layers = [flowplug_nflows.NflowsTransform(part) for part in parts()]
    return Flow(CompositeTransform([*layers[:2], own, layers[2]]), StandardNormal([3]))


def normflows_flow(context):
    own = nf.flows.MaskedAffineAutoregressive(3, 4, context_features=context or None)
    flows = [flowplug_normflows.NormflowsFlow(part) for part in reversed(parts())]
    host = nf.ConditionalNormalizingFlow if context else nf.NormalizingFlow
    return host(nf.distributions.DiagGaussian(3), [flows[0], own, *flows[1:]])


def zuko_flow(context):
    own = zuko.flows.MaskedAutoregressiveTransform(3, context, hidden_features=(4,))
    layers = [flowplug_zuko.ZukoTransform(part) for part in parts()]
    base = UnconditionalDistribution(DiagNormal, torch.zeros(3), torch.ones(3), buffer=True)
    return zuko.lazy.Flow([*layers[:2], own, layers[2]], base)


FLOWS = {
    "nflows": (nflows_flow, flowplug_nflows.start, lambda flow, x, c: flow._transform(x, c)[0]),
    "normflows": (
        normflows_flow,
        flowplug_normflows.start,
        lambda flow, x, c: flow.inverse(x) if c is None else flow.inverse(x, c),
    ),
    "zuko": (zuko_flow, flowplug_zuko.start, lambda flow, x, c: flow(c).transform(x)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("width", [0, 2])
@pytest.mark.parametrize(("make", "start", "latent"), FLOWS.values(), ids=FLOWS)
def test_start_and_reset(make, start, latent, width, training):
    flow, x = make(width).train(training), 1e6 * (7 + torch.randn(500, 3))
    context = torch.randn(500, width) if width else None
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    start(flow, x, context)
    assert flow.training == training
    with torch.no_grad():
        y = latent(flow.eval(), x, context)
    torch.testing.assert_close(y.mean(0), torch.zeros(3), atol=2e-3, rtol=0)
    torch.testing.assert_close(y.std(0), torch.ones(3), atol=2e-3, rtol=0)
    starting = [module for module in flow.modules() if isinstance(module, fp.ActNorm | fp.Whitening)]
    assert [float(module.started) for module in starting] == [1.0] * 3
    flowplug_zuko.reset(flow)
    assert all(torch.equal(before[name], value) for name, value in flow.state_dict().items())


@pytest.mark.parametrize(("make", "start", "latent"), FLOWS.values(), ids=FLOWS)
def test_refusals(make, start, latent):
    with pytest.raises(fp.ShapeError, match="ActNorm: a start takes at least 2 rows of data; got 1"):
        start(make(0), torch.randn(1, 3))
    for other in (nn.Linear(3, 3), fp.ActNorm(3)):
        with pytest.raises(TypeError, match=f"start takes a .*; got {type(other).__name__}"):
            start(other, torch.randn(9, 3))
