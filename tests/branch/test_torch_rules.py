"""The bounds of torch's own modules, against their largest slopes."""

import pytest
import torch
from torch import nn

import flowplug as fp
from flowplug.branch import SWISH_SLOPE


def test_the_constant_of_lipswish_is_the_largest_slope_of_swish():
    x = torch.linspace(2.3, 2.5, 200_001, dtype=torch.float64)
    gate = torch.sigmoid(x)
    largest = float((gate * (1 + x * (1 - gate))).max())
    assert largest <= SWISH_SLOPE <= largest * (1 + 1e-7)


@pytest.mark.parametrize(
    ("module", "value", "norm"),
    [
        (nn.Tanh(), 1.0, None),
        (nn.Sigmoid(), 0.25, None),
        (nn.ELU(alpha=2.0), 2.0, None),
        (nn.LeakyReLU(-3.0), 3.0, None),
        (nn.PReLU(init=3.0), 3.0, None),
        (nn.SiLU(), SWISH_SLOPE, None),
        (nn.Softplus(beta=3.0), 1.0, None),
        (nn.Hardtanh(), 1.0, None),
        (nn.PixelUnshuffle(2), 1.0, None),
        (fp.MaxMin(), 1.0, None),
        (fp.CLipSwish(), 1.0, 2.0),
        (nn.Sequential(nn.Sigmoid(), nn.ELU(alpha=2.0)), 0.5, None),
    ],
)
def test_known_modules(module, value, norm):
    assert fp.lipschitz_bound(module)[:2] == (value, norm)


@pytest.mark.parametrize(
    "module",
    [
        *(nn.ReLU(), nn.Hardtanh(), nn.Tanh(), nn.Softsign(), nn.Softplus(beta=4.0), nn.LogSigmoid()),
        *(nn.Sigmoid(), nn.ELU(alpha=2.0), nn.LeakyReLU(-3.0), nn.PReLU(init=2.0), nn.SiLU()),
    ],
    ids=lambda module: type(module).__name__,
)
def test_bounds_of_activations_are_their_largest_slopes(module):
    x = torch.linspace(-30, 30, 60_001, requires_grad=True)
    (slope,) = torch.autograd.grad(module(x).sum(), x)
    assert float(slope.abs().max()) == pytest.approx(float(fp.lipschitz_bound(module)), rel=1e-3)


def test_plain_linear_layers_by_their_2_norm(eps):
    layer = nn.Linear(3, 4)
    bound = fp.lipschitz_bound(nn.Sequential(layer, nn.Tanh()))
    assert bound.domain == 2
    truth = float(torch.linalg.matrix_norm(layer.weight.detach(), 2))
    assert abs(float(bound) - truth) <= 10 * eps


def test_a_softplus_that_jumps_has_no_bound():
    with pytest.raises(fp.LipschitzError, match=r"Softplus\(threshold=2\) jumps"):
        fp.lipschitz_bound(nn.Softplus(5.0, 2.0))
