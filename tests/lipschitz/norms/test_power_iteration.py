"""Power iteration: its buffer, its tolerance, and what it does when the weights turn."""

import pytest
import torch
from torch import nn

import flowplug as fp


def test_only_training_passes_with_gradients_refresh_the_buffer():
    layer = fp.LipschitzLinear(8, 8, norm=fp.PowerIteration(tol=1e-2))
    layer.weight = nn.Parameter(torch.randn(8, 8))
    before = layer.norm.u.clone()
    with torch.no_grad():
        layer(torch.randn(2, 8))
    layer.eval()(torch.randn(2, 8))
    assert torch.equal(layer.norm.u, before)
    layer.train()(torch.randn(2, 8))
    assert not torch.equal(layer.norm.u, before)


@pytest.mark.parametrize("tol", [0.1, 0.01, 0.001])
def test_reaches_its_tolerance_whatever_the_spectrum(tol):
    rotation, _ = torch.linalg.qr(torch.randn(64, 64))
    for spectrum in (torch.ones(64), torch.linspace(0, 1, 64), torch.linspace(0.9, 1, 64), torch.rand(64) ** 8):
        weight = 5 * rotation @ torch.diag(spectrum / spectrum.max()) @ rotation.T
        norm = fp.PowerIteration(tol=tol, max_iterations=10_000)
        error = float(torch.linalg.matrix_norm(norm.project(weight, 0.9), 2)) / 0.9 - 1
        assert -1e-5 <= error <= tol


def test_stops_sooner_with_a_larger_tolerance_and_goes_on_from_there():
    weight = torch.diag(torch.linspace(0.9, 1.0, 32)) + 0.01 * torch.randn(32, 32)
    layer = fp.LipschitzLinear(32, 32, bound=0.9, norm=fp.PowerIteration(tol=0.1))
    layer.weight = nn.Parameter(5 * weight)
    errors = [float(torch.linalg.matrix_norm(layer.bounded_weight().detach(), 2)) / 0.9 - 1 for _ in range(200)]
    assert errors[0] > 1e-4
    assert errors[-1] < min(errors[0] / 2, 1e-3)


def test_a_warm_start_does_not_hide_a_new_direction():
    layer = fp.LipschitzLinear(16, 16, bound=0.9, norm=fp.PowerIteration())
    layer.weight = nn.Parameter(torch.diag(torch.linspace(5, 0.1, 16)))
    layer.bounded_weight()
    with torch.no_grad():
        layer.weight[-1, -1] = 10
    assert float(torch.linalg.matrix_norm(layer.bounded_weight().detach(), 2)) <= 0.9 * 1.005


def test_stops_at_max_iterations():
    weight = torch.randn(8, 8)
    one, many = (fp.PowerIteration(tol=1e-6, max_iterations=n).project(weight, 0.1) for n in (1, 2000))
    assert float(torch.linalg.matrix_norm(many, 2)) < float(torch.linalg.matrix_norm(one, 2))


def test_bad_settings():
    with pytest.raises(ValueError, match=r"tol=.*positive; got 0"):
        fp.PowerIteration(tol=0)
    with pytest.raises(ValueError, match=r"max_iterations=.*at least 1; got 0"):
        fp.PowerIteration(max_iterations=0)


@pytest.mark.slow
def test_power_iteration_keeps_its_tolerance_at_every_step():
    layer = fp.LipschitzLinear(16, 16, bound=0.9, norm=fp.PowerIteration())
    g = nn.Sequential(layer, nn.Tanh(), fp.LipschitzLinear(16, 16, bound=0.9))
    optimizer, worst = torch.optim.Adam(g.parameters(), lr=0.05), 0.0
    for _ in range(300):
        x = torch.randn(64, 16)
        loss = -(g(x) - g(x + 0.01 * torch.randn_like(x))).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        worst = max(worst, float(torch.linalg.matrix_norm(layer.bounded_weight().detach(), 2)) / 0.9 - 1)
    assert worst <= 5e-3
