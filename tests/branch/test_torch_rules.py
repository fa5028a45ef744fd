"""The bounds of torch's own modules, against their largest slopes."""

import math

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


def norm_of_pooling(pool, channels, *sizes):
    """That of its matrix on images of these sizes."""
    count = channels * math.prod(sizes)
    return float(torch.linalg.matrix_norm(pool(torch.eye(count).reshape(count, channels, *sizes)).flatten(1), 2))


@pytest.mark.parametrize(
    ("pool", "sizes", "value"),
    [
        (nn.AvgPool2d(2), (6, 4), 1 / 2),
        (nn.AvgPool2d((2, 3)), (6, 6), 1 / math.sqrt(6)),
        (nn.AvgPool2d(2, stride=3), (6, 6), 1 / 2),
        (nn.AvgPool2d(4), (4, 4), 1 / 4),
        (nn.AvgPool1d(3), (9,), 1 / math.sqrt(3)),
        (nn.AvgPool3d(2), (4, 4, 2), 1 / math.sqrt(8)),
    ],
    ids=str,
)
def test_pooling_in_windows_apart_has_its_norm(pool, sizes, value, eps):
    bound = fp.lipschitz_bound(pool)
    assert bound.domain == 2
    assert float(bound) == pytest.approx(value, rel=1e-12)
    assert norm_of_pooling(pool, 2, *sizes) == pytest.approx(value, rel=10 * eps)


@pytest.mark.parametrize(
    ("pool", "sizes"),
    [
        (nn.AvgPool2d(3, stride=1), (6, 5)),
        (nn.AvgPool2d(3, stride=2, padding=1), (7, 6)),
        (nn.AvgPool2d((3, 2), stride=(1, 2)), (6, 6)),
        (nn.AvgPool1d(5, stride=2), (23,)),
        (nn.AvgPool3d(2, stride=1), (4, 3, 3)),
    ],
    ids=str,
)
def test_pooling_in_shared_windows_is_below_its_bound(pool, sizes):
    truth = norm_of_pooling(pool, 1, *sizes)
    assert truth <= float(fp.lipschitz_bound(pool)) <= 1.5 * truth


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(2, ceil_mode=True),
        nn.AvgPool1d(3, padding=1, count_include_pad=False),
        nn.AvgPool2d(2, divisor_override=1),
    ],
    ids=str,
)
def test_pooling_with_divisors_of_their_own_has_no_bound(pool):
    with pytest.raises(fp.LipschitzError, match="where all windows have the same divisor"):
        fp.lipschitz_bound(pool)
