"""What a flowplug transform does in a host without the wrapper of its adapter."""

import normflows as nf
import pytest
import torch
import zuko
from nflows.distributions import StandardNormal
from nflows.flows import Flow as NflowsFlow
from nflows.transforms import CompositeTransform
from zuko.distributions import DiagNormal
from zuko.lazy import UnconditionalDistribution

import flowplug as fp
import flowplug_normflows
from flowplug_nflows import NflowsTransform
from flowplug_normflows import NormflowsFlow


def transform():
    core = fp.ComposedTransform(fp.ActNorm(2), fp.ResidualTransform(fp.LipschitzMLP(2, context_features=3)))
    core(5 + 2 * torch.randn(64, 2), torch.randn(64, 3))
    return core.eval()


def test_nflows_runs_it_in_the_right_direction():
    core, x, c = transform(), torch.randn(5, 2), torch.randn(5, 3)
    results = []
    for part in (core, CompositeTransform([core]), NflowsTransform(core)):
        flow = NflowsFlow(part, StandardNormal([2])).to(x.device)
        torch.manual_seed(1)
        results.append((flow.log_prob(x, context=c), flow.sample(3, context=c)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def test_zuko_is_told_to_use_the_wrapper():
    base = UnconditionalDistribution(DiagNormal, torch.zeros(2), torch.ones(2), buffer=True)
    with pytest.raises(fp.DtypeError, match="got NoneType; in a flow of another library, use the wrapper of its adapt"):
        zuko.flows.Flow([fp.ActNorm(2)], base)()
    with pytest.raises(fp.ShapeError, match=r"event \(2,\); got shape \(5, 3\)"):
        zuko.flows.Flow([transform()], base)(torch.randn(5, 3))
    with pytest.raises(AttributeError, match="'tuple' object has no attribute"):
        zuko.flows.Flow([fp.ActNorm(2)], base)(torch.randn(5, 2))


def test_normflows_runs_it_backwards_as_its_documentation_says():
    core = fp.ComposedTransform(fp.ActNorm(2), fp.ResidualTransform(fp.LipschitzMLP(2)))
    x = 5 + 2 * torch.randn(64, 2)
    core(x)
    base = nf.distributions.DiagGaussian(2, trainable=False).to(x.device)
    core.eval()
    backwards = nf.NormalizingFlow(base, [NormflowsFlow(core, reverse=False)])
    torch.testing.assert_close(nf.NormalizingFlow(base, [core]).log_prob(x), backwards.log_prob(x))
    assert "runs backwards" in flowplug_normflows.__doc__
