"""Control variates: exact where the network knows them, and worth it."""

import pytest
import torch

import flowplug as fp
from helpers import BRANCHES, event


@pytest.mark.parametrize("name", BRANCHES)
def test_trace(name, eps):
    g = BRANCHES[name]()
    branch, x = fp.Branch.of(g, None), torch.randn(6, *event(g))
    trace = branch.linearize(x).trace()
    if not isinstance(g, fp.LipschitzMLP) or name == "three hidden layers":
        assert trace is None
        return
    expected = branch.jacobian(x)[1].diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(trace, expected, atol=100 * eps, rtol=0)


@pytest.mark.parametrize("make", [fp.Krylov, fp.PowerSeries])
def test_lowers_the_variance(make):
    g, x = fp.LipschitzMLP(20, (30,)), torch.randn(1, 20).expand(500, 20)
    with_control, without = (
        fp.ResidualTransform(g, logdet=make(terms=fp.Truncated(20), control=control))(x)[1].detach().var()
        for control in (fp.ExactTrace(), None)
    )
    assert float(with_control) < float(without) / 3
