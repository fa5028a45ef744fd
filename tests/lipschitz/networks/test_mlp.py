"""The multilayer perceptron: its bound is that of the whole network, its Jacobian one chain."""

import math

import pytest
import torch
from torch import nn

import flowplug as fp
from cases import small_mlp
from helpers import true_norm

NORMS = [fp.InfNorm(), fp.Gram()]


@pytest.mark.parametrize("norm", NORMS)
def test_bound_is_that_of_the_whole_network(norm):
    g = fp.LipschitzMLP(3, (8, 8, 8), bound=0.9, norm=norm)
    with torch.no_grad():
        for parameter in g.parameters():
            parameter.mul_(100)
    bound = fp.lipschitz_bound(g)
    assert bound.domain == norm.orders()[0]
    assert 0.88 < float(bound) <= 0.9 * 1.00001


@pytest.mark.parametrize("activation", [fp.SineHuber, lambda: fp.Sine(3.0), fp.LipSwish, nn.Tanh])
def test_jacobian_is_that_of_autograd(activation, eps):
    g = fp.LipschitzMLP(3, (8, 8), context_features=2, activation=activation)
    x, context = torch.randn(5, 3), torch.randn(5, 2)
    y, jacobian = g.branch(context).jacobian(x)
    torch.testing.assert_close(y, g(x, context), atol=10 * eps, rtol=0)
    for row in range(5):
        wanted = torch.autograd.functional.jacobian(lambda z, row=row: g(z, context[row]), x[row])
        torch.testing.assert_close(jacobian[row], wanted, atol=10 * eps, rtol=0)
    parameters = list(g.parameters())
    grads, wanted = (torch.autograd.grad(out.square().sum(), parameters) for out in (y, g(x, context)))
    for grad, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, other, atol=100 * eps, rtol=0)


def test_rows_select_the_context(eps):
    g = fp.LipschitzMLP(3, (8,), context_features=2)
    x, context, index = torch.randn(5, 3), torch.randn(5, 2), torch.tensor([4, 1])
    torch.testing.assert_close(g.branch(context).select(index)(x[index]), g(x, context)[index], atol=4 * eps, rtol=0)


@pytest.mark.parametrize("bound", [0.0, 1.0, 1.2, math.nan])
def test_bad_bound(bound):
    with pytest.raises(fp.LipschitzError, match=r"must be in \(0, 1\)"):
        fp.LipschitzMLP(3, bound=bound)


def test_bad_sizes():
    for features, hidden in ((0, (4,)), (3, (4, 0)), ((3, 0, 2), (4,))):
        with pytest.raises(fp.ShapeError, match="positive sizes"):
            fp.LipschitzMLP(features, hidden)


def test_activation_with_too_large_a_bound():
    with pytest.raises(fp.LipschitzError, match="ELU has the bound 2 in every p-norm, above 1"):
        fp.LipschitzMLP(3, activation=lambda: nn.ELU(alpha=2.0))


def test_called_alone_it_checks_its_input():
    g = fp.LipschitzMLP(3, context_features=2)
    with pytest.raises(fp.ShapeError, match=r"\(\*batch, \*\(3,\)\)"):
        g(torch.randn(4, 5), torch.randn(4, 2))
    with pytest.raises(fp.ContextError, match="width 2; got none"):
        g(torch.randn(4, 3))
    with pytest.raises(fp.ContextError, match="width 2; got shape"):
        g(torch.randn(4, 3), torch.randn(4, 3))


def test_repr_and_no_hidden_layer():
    g = fp.LipschitzMLP(3, ())
    assert fp.ResidualTransform(g)(torch.randn(4, 3))[0].shape == (4, 3)
    assert "bound=0.97, norm=PathNorm()" in repr(g)
    assert "LipschitzLinear" in repr(fp.LipschitzMLP(3, norm=fp.Gram()))


def test_it_holds_for_jacobians_at_random_points():
    for norm in NORMS:
        g = small_mlp(norm=norm)
        jacobian = fp.Branch.of(g, None).jacobian(3 * torch.randn(500, 3))[1]
        assert float(true_norm(jacobian, norm).max().detach()) <= float(fp.lipschitz_bound(g))


def test_the_network_ends_in_the_norm_it_starts_from():
    there, back = fp.InducedNorm(1.5, 3), fp.InducedNorm(3, 1.5)
    bound = fp.lipschitz_bound(fp.LipschitzMLP(3, (8,), bound=0.9, norm=(there, back)))
    assert bound.domain == 1.5
    assert bound.codomain is None
    with pytest.raises(fp.LipschitzError, match=r"from the 1.5-norm to the 3-norm.*ends in the norm it starts from"):
        fp.LipschitzMLP(3, (8,), norm=(there, fp.InducedNorm(3, 3)))
    with pytest.raises(fp.LipschitzError, match="different norms"):
        fp.LipschitzMLP(3, (8,), norm=there)
    with pytest.raises(fp.LipschitzError, match="2 layers and needs one norm for all, or as many; got 3"):
        fp.LipschitzMLP(3, (8,), norm=(there, back, there))
