"""Orders that are learned: tied from layer to layer, registered once, moved by gradients."""

import math

import pytest
import torch
from torch import nn

import flowplug as fp


def test_orders_are_tied_from_layer_to_layer_and_back():
    norms = fp.LearnedOrder().chain(3)
    assert [norm.ends[1] for norm in norms] == [norms[1].ends[0], norms[2].ends[0], norms[0].ends[0]]
    assert len({norm.ends[0] for norm in norms}) == 3
    assert len({order for norm in fp.LearnedOrder(shared=True).chain(3) for order in norm.ends}) == 1


@pytest.mark.parametrize(("norm", "count"), [(fp.LearnedOrder(), 3), (fp.LearnedOrder(shared=True), 1)])
def test_every_order_is_registered_once(norm, count):
    g = fp.LipschitzMLP(3, (8, 8), norm=norm, activation=nn.Tanh)
    assert len([name for name in g.state_dict() if "order" in name]) == count
    assert len([name for name, _ in g.named_parameters(remove_duplicate=False) if "order" in name]) == count


def test_orders_that_are_not_tied_are_refused():
    layers = (fp.LipschitzLinear(3, 3, norm=fp.LearnedOrder()) for _ in range(2))
    with pytest.raises(fp.LipschitzError, match="different norms"):
        fp.ResidualTransform(nn.Sequential(*layers))


def test_orders_learn_from_the_first_step():
    for hidden in ((8,), (8, 8)):
        g = fp.LipschitzMLP(3, hidden, norm=fp.LearnedOrder(), activation=nn.Tanh)
        transform = fp.ResidualTransform(g)
        y, ladj = transform(torch.randn(16, 3))
        (y.square().sum() - ladj.sum()).backward()
        orders = {layer.norm.ends[0] for layer in g.layers}
        gradients = torch.stack([order.raw.grad for order in orders])
        assert bool(gradients.isfinite().all())
        assert bool(gradients.any())


def test_a_chain_of_ones_own_layers():
    first, second = fp.LearnedOrder().chain(2)
    g = nn.Sequential(fp.LipschitzLinear(3, 8, norm=first), nn.Tanh(), fp.LipschitzLinear(8, 3, norm=second))
    with torch.no_grad():
        first.ends[0].raw.fill_(1.0)
    assert fp.lipschitz_bound(g).domain == pytest.approx(1.5 + torch.sigmoid(torch.ones(())).item())
    swapped = nn.Sequential(g[2], nn.Tanh(), g[2])
    with pytest.raises(fp.LipschitzError, match="different norms"):
        fp.lipschitz_bound(swapped)


@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (2.0, 2.0), (2.0, 1.5), (2.0, math.inf), (math.nan, 2.0)])
def test_bad_ranges(low, high):
    with pytest.raises(fp.LipschitzError, match="1 <= low < high < inf"):
        fp.LearnedOrder(low, high)


def test_orders_are_learned_in_the_direction_of_larger_jacobians():
    weight = torch.zeros(4, 4)
    weight[0] = 1.0  # |W| = 4^(1 - 1/p) from p to p: smallest at p = 1
    (norm,) = fp.LearnedOrder(low=1.0, high=3.0).chain(1)
    optimizer = torch.optim.Adam(norm.parameters(), lr=0.1)
    before = float(norm.orders()[0].detach())
    for _ in range(50):
        optimizer.zero_grad()
        (-norm.project(weight, 0.9).sum()).backward()
        optimizer.step()
    assert float(norm.orders()[0].detach()) < before - 0.5
