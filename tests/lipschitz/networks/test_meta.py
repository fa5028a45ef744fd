"""Networks made without memory, on the meta device, and filled later."""

import functools
import math

import pytest
import torch
from torch import nn

import flowplug as fp
from helpers import sequential

ONE = functools.partial(fp.CLipSwish, order=1)
MIXED = (fp.InducedNorm(math.inf, 2.0), fp.InducedNorm(2.0, math.inf))
NETWORKS = {
    **{
        f"MLP {norm}": functools.partial(fp.LipschitzMLP, 3, (8,), norm=norm)
        for norm in (fp.PathNorm(), fp.InfNorm(), fp.Gram(), fp.SVD(), fp.PowerIteration(), fp.LearnedOrder(), MIXED)
    },
    "MLP PReLU": functools.partial(fp.LipschitzMLP, 3, (8,), activation=nn.PReLU),
    "MLP MaxMin": functools.partial(fp.LipschitzMLP, 3, (8,), activation=fp.MaxMin, norm=fp.OneNorm()),
    "CNN": functools.partial(fp.LipschitzCNN, 3, (4,)),
    "CNN PowerIteration": functools.partial(fp.LipschitzCNN, 3, (4,), norm=fp.PowerIteration()),
    "DenseNet": functools.partial(fp.LipschitzDenseNet, 3, (4, 4), norm=fp.OneNorm(), activation=ONE),
    "Sequential": sequential,
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_filled_they_are_as_made_in_place(make, training):
    keywords = {"logdet": fp.PowerSeries(terms=fp.Roulette(fp.Certified(), exact=1)), "eval_logdet": fp.ExactLogDet()}
    wanted = fp.ResidualTransform(make(), **keywords)
    with torch.device("meta"):
        transform = fp.ResidualTransform(make(), **keywords)
    assert all(parameter.is_meta for parameter in transform.parameters())
    transform.to_empty(device=torch.empty(0).device)
    transform.load_state_dict(wanted.state_dict())
    x, results = torch.randn(5, 3, 3, 3) if "CNN" in type(wanted.g).__name__ else torch.randn(5, 3), []
    for each in (transform, wanted):
        torch.manual_seed(0)
        results.append([*each.train(training)(x), *each.inverse(x)])
    assert all(map(torch.equal, *results))


def test_the_bound_is_checked_at_first_use():
    for training in (True, False):
        with torch.device("meta"):
            transform = fp.ResidualTransform(nn.Linear(3, 3))
        transform.to_empty(device=torch.empty(0).device).train(training)
        nn.init.zeros_(transform.g.bias)
        with torch.no_grad():
            nn.init.eye_(transform.g.weight).mul_(2)
        with pytest.raises(fp.LipschitzError, match="g = Linear has the Lipschitz bound 2 in the 2-norm"):
            transform(torch.randn(4, 3))
    with torch.no_grad():
        transform.g.weight.mul_(0.25)
    with pytest.warns(fp.UnboundedBranchWarning):
        transform(torch.randn(4, 3))


def test_weights_without_values_have_no_bound():
    with torch.device("meta"):
        g = fp.LipschitzMLP(2)
    with pytest.raises(
        fp.LipschitzError, match="LipschitzMLP has weights on the meta device, without values or a bound"
    ):
        fp.lipschitz_bound(g)
