"""Linear layers: bounded at every forward, whatever trains them."""

import math

import pytest
import torch

import flowplug as fp
from helpers import true_norm

NORMS = [fp.InfNorm(), fp.Gram()]


@pytest.mark.parametrize("norm", NORMS)
def test_stays_bounded_under_adversarial_training(norm, eps):
    layer = fp.LipschitzLinear(8, 6, bound=0.9, norm=norm)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (-layer(torch.randn(16, 8)).square().sum()).backward()
        optimizer.step()
    assert float(true_norm(layer.bounded_weight().detach(), norm)) <= 0.9 * (1 + 10 * eps)
    assert float(true_norm(layer.weight.detach(), norm)) > 1


def test_train_mode_is_a_pure_function():
    layer, x = fp.LipschitzLinear(3, 3, norm=fp.Gram()), torch.randn(4, 3)
    assert torch.equal(layer(x), layer(x))
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_repr_names_the_bound():
    assert "bound=0.5, norm=InfNorm()" in repr(fp.LipschitzLinear(3, 4, bound=0.5))


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
def test_bad_bound(bound):
    with pytest.raises(fp.LipschitzError, match="positive finite number"):
        fp.LipschitzLinear(3, 3, bound=bound)
