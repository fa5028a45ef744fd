"""Dense networks: concatenations whose weights are learned, at norm 1."""

import math

import pytest
import torch
from torch import nn

import flowplug as fp


@pytest.mark.parametrize("norm", [fp.InfNorm(), fp.OneNorm(), fp.Gram(), fp.LearnedOrder(shared=True)], ids=str)
def test_the_weights_of_a_concatenation_have_norm_1(norm, eps):
    g = fp.LipschitzDenseNet(3, (4, 4), norm=norm, activation=nn.Tanh)
    nn.init.normal_(g.raw_mix)
    order = fp.lipschitz_bound(g).domain
    for mix in g.mixes():
        assert bool((mix > 0).all())
        assert abs(float(torch.linalg.vector_norm(mix.detach(), order)) - 1) <= 100 * eps


def test_the_weights_are_learned():
    g = fp.LipschitzDenseNet(3, (4, 4))
    g(torch.randn(4, 3)).square().sum().backward()
    assert bool(g.raw_mix.grad.any())


def test_the_certificate_follows_the_weights_in_use():
    """Halving a hidden layer leaves the other part of the concatenation."""
    g = fp.LipschitzDenseNet(3, (4,), norm=fp.SVD(), activation=nn.Tanh, bound=0.9)
    old, new = g.mixes()[0].tolist()
    with torch.no_grad():
        g.layers[0].weight.mul_(0.5)
    norms = [float(torch.linalg.matrix_norm(weight, 2).detach()) for weight in g.bounded_weights()]
    assert float(fp.lipschitz_bound(g)) == pytest.approx(math.hypot(old, new * norms[0]) * norms[1])
    assert norms[0] < 0.6


def test_norms_from_p_to_q_are_refused():
    for norm in (fp.LearnedOrder(), fp.InducedNorm(1.5, 2)):
        with pytest.raises(fp.LipschitzError, match=r"use one norm for both|different norms"):
            fp.LipschitzDenseNet(3, (4,), norm=norm, activation=nn.Tanh)


def test_wrong_sizes():
    for wrong in ({"features": 0}, {"hidden_features": (0,)}, {"kernel_size": 0}):
        with pytest.raises(fp.ShapeError, match="positive sizes"):
            fp.LipschitzDenseNet(**{"features": 2, **wrong})
