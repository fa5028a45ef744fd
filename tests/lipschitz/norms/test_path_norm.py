"""The bound of a network as a whole: equal to brute force, never below a Jacobian, never above a product of norms."""

import functools
import itertools
import math

import pytest
import torch
from torch import nn

import flowplug as fp
from helpers import spread

MIXING = [fp.MaxMin, fp.FullSort, functools.partial(fp.GroupSort, 4), fp.CLipSwish]


def largest_slope(g, x):
    return float(torch.linalg.matrix_norm(fp.Branch.of(g, None).jacobian(x)[1].detach(), math.inf).max())


def test_is_the_sum_over_the_paths(eps):
    g = spread(fp.LipschitzMLP(3, (4, 5), norm=fp.PathNorm()))
    first, middle, last = (weight.detach().abs() for weight in g.bounded_weights())
    paths = torch.zeros(3)
    for out, second, hidden, start in itertools.product(range(3), range(5), range(4), range(3)):
        paths[out] += last[out, second] * middle[second, hidden] * first[hidden, start]
    assert float(fp.lipschitz_bound(g)) == pytest.approx(float(paths.max()), rel=20 * eps)
    assert float(paths.max()) <= 0.97 * (1 + 20 * eps)


def test_shrinks_only_outputs_above_the_bound_and_only_in_the_last_layer():
    g = fp.LipschitzMLP(2, (4,), bound=0.5)
    with torch.no_grad():
        g.layers[0].weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.1], [0.0, 0.0], [1.0, 1.0]]))
        g.layers[1].weight.copy_(torch.tensor([[0.1, 0.1, 9.0, 0.0], [1.0, 0.0, 0.0, -1.0]]))
    first, last = g.bounded_weights()
    torch.testing.assert_close(first, g.layers[0].weight)
    torch.testing.assert_close(last[0], g.layers[1].weight[0])
    torch.testing.assert_close(last[1], g.layers[1].weight[1] / 10)


@pytest.mark.parametrize("make", [functools.partial(fp.LipschitzMLP, 4, (6, 5)), functools.partial(fp.LipschitzCNN, 4)])
def test_is_never_above_the_product_of_the_norms(make):
    for _ in range(20):
        g = spread(make(norm=fp.PathNorm()))
        product = math.prod(float(fp.InfNorm().measure(weight.detach())) for weight in g.bounded_weights())
        assert float(fp.lipschitz_bound(g)) <= product * 1.0001
        assert float(fp.lipschitz_bound(g)) < 0.9 * product


@pytest.mark.parametrize("activation", [*MIXING, fp.Sine, fp.SineHuber, nn.Tanh, nn.PReLU])
def test_no_jacobian_exceeds_it(activation):
    for _ in range(5):
        g = spread(fp.LipschitzMLP(3, (8, 8), norm=fp.PathNorm(), activation=activation, bound=0.9))
        bound = fp.lipschitz_bound(g)
        assert bound.domain == math.inf
        assert largest_slope(g, 3 * torch.randn(200, 3)) <= float(bound) * 1.00001 <= 0.9001


def test_behind_a_sort_all_units_count_as_the_steepest():
    """The larger of 10 x and x / 10 is the first where x > 0: the weight of the second unit meets its slope."""
    g = fp.LipschitzMLP(1, (2,), norm=fp.PathNorm(), activation=fp.MaxMin, bound=0.9)
    with torch.no_grad():
        g.layers[0].weight.copy_(torch.tensor([[10.0], [0.1]]))
        g.layers[0].bias.zero_()
        g.layers[1].weight.copy_(torch.tensor([[0.0, 1.0]]))
    assert float(g.bounded_weights()[1][0, 1].detach()) == pytest.approx(0.09)
    assert largest_slope(g, torch.ones(1, 1)) == pytest.approx(0.9)


def test_an_activation_that_turned_steep_is_paid_for():
    g = fp.LipschitzMLP(2, (8,), norm=fp.PathNorm(), activation=nn.PReLU, bound=0.9)
    with torch.no_grad():
        g.activations[0].weight.fill_(5.0)
    assert float(fp.lipschitz_bound(g)) == pytest.approx(0.9)
    assert largest_slope(g, 3 * torch.randn(200, 2)) <= 0.9001


@pytest.mark.slow
@pytest.mark.parametrize("make", [functools.partial(fp.LipschitzMLP, 4, (8, 8)), functools.partial(fp.LipschitzCNN, 2)])
def test_an_adversary_stays_below_it(make):
    g = make(norm=fp.PathNorm(), bound=0.9)
    event = (4,) if isinstance(g, fp.LipschitzMLP) else (2, 4, 4)
    optimizer = torch.optim.Adam(g.parameters(), lr=0.05)
    for _ in range(300 if len(event) == 1 else 60):
        loss = -fp.Branch.of(g, None).jacobian(torch.randn(8, *event))[1].square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert float(fp.lipschitz_bound(g)) <= 0.90001
    assert 0.4 < largest_slope(g, 3 * torch.randn(50, *event)) <= 0.90001


def test_gradcheck():
    norm = fp.PathNorm()
    weights = [torch.randn(4, 3), torch.randn(5, 4), torch.randn(3, 5)]
    weights = [weight.double().requires_grad_() for weight in weights]
    activations = [nn.Tanh(), fp.FullSort()]
    assert torch.autograd.gradcheck(lambda *w: norm.project(w, activations, 0.9)[-1], weights)
    assert torch.autograd.gradcheck(lambda *w: norm.certify(w, activations).value, weights)


def test_it_is_no_norm_of_one_layer():
    for make in (functools.partial(fp.LipschitzLinear, 3, 4), functools.partial(fp.LipschitzConv2d, 3, 4, 3)):
        with pytest.raises(fp.LipschitzError, match=r"norm=\.\.\.\) must be the norm of a layer"):
            make(norm=fp.PathNorm())
    for norm in ((fp.PathNorm(), fp.InfNorm()), fp.PathNorm, "inf"):
        with pytest.raises(fp.LipschitzError, match="or one of the whole network"):
            fp.LipschitzMLP(3, norm=norm)


def test_a_layer_taken_out_of_its_network_is_certified_as_it_is():
    g = spread(fp.LipschitzMLP(3, (8,), norm=fp.PathNorm()))
    layer = g.layers[0]
    assert float(fp.lipschitz_bound(layer)) == pytest.approx(float(torch.linalg.matrix_norm(layer.weight.detach(), 2)))
    assert float(fp.lipschitz_bound(layer)) > 1


def test_nan_is_refused():
    g = fp.LipschitzMLP(3)
    with torch.no_grad():
        g.layers[0].weight[0, 0] = math.nan
    with pytest.raises(fp.LipschitzError, match="weights hold NaN"):
        fp.ResidualTransform(g)
