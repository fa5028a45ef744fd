"""Sines and pseudo-Huber functions: the ladder of frequencies, every derivative, half precision."""

import math

import pytest
import torch

import flowplug as fp


def test_bad_frequency():
    for highest in (0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match="at least 1 and finite"):
            fp.SineHuber(highest)


def test_sines_and_pseudo_huber_functions_at_a_ladder_of_frequencies(eps):
    activation, x = fp.SineHuber(16.0), torch.linspace(-3, 3, 100).unsqueeze(1)
    with torch.no_grad():
        activation.log_frequency.copy_(torch.tensor([0.5, -0.5]))
    first, second = (1, 4, 16), (1, 16)
    columns = [torch.sin(math.exp(0.5) * w * x) / (math.exp(0.5) * w) for w in first]
    for w in (math.exp(-0.5) * w for w in second):
        columns.append((torch.sqrt(1 + (w * x) ** 2) - 1) / w)
    value = activation(x.expand(-1, 5))
    torch.testing.assert_close(value, torch.cat(columns, dim=1), atol=20 * eps, rtol=20 * eps)
    pixels = x.expand(-1, 5)[..., None, None].expand(-1, 5, 2, 3)
    assert torch.equal(activation(pixels), value[..., None, None].expand_as(pixels))
    assert activation(torch.zeros(2, 1)).shape == (2, 1)
    with pytest.raises(fp.ShapeError, match=r"\(B, channels, \*spatial\); got \(3,\)"):
        activation(torch.zeros(3))


def test_slopes_of_every_channel_are_right_and_at_most_1(eps):
    # A frequency of 30 makes of the rounding of its arguments, up to 600, an error of a slope of 600 eps.
    activation, x = fp.SineHuber(), torch.linspace(-20, 20, 401).unsqueeze(1).expand(-1, 6).clone().requires_grad_()
    (slope,) = torch.autograd.grad(activation(x).sum(), x)
    torch.testing.assert_close(activation.derivative(x), slope, atol=1e3 * eps, rtol=1e3 * eps)
    assert float(slope.abs().max()) <= 1 + 10 * eps
    assert float(slope.amax(0).min()) > 0.9
    assert float(slope.amin(0).max()) < -0.9
    frequency = activation.frequency(6)
    value, unit = activation.linearize(frequency * x)
    torch.testing.assert_close(value / frequency, activation(x), atol=20 * eps, rtol=20 * eps)
    torch.testing.assert_close(unit, slope, atol=1e3 * eps, rtol=1e3 * eps)


def test_half_precision_does_not_overflow():
    activation, x = fp.SineHuber(1.0).half(), torch.full((1, 2), 1e3, dtype=torch.float16)
    value, slope = activation.linearize(x)
    assert value.dtype == slope.dtype == torch.float16
    assert [out[0, 1].item() for out in (value, slope, activation(x))] == [999, 1, 999]


def test_autocast_to_half_precision_far_out():
    g, x = fp.LipschitzMLP(4, (16,)), 100 * torch.randn(20, 4)
    wanted = g(x).detach()
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        y = g.branch(None).linearize(x).y
    assert float((y - wanted).abs().amax()) <= 2 * torch.finfo(torch.float16).eps * float(x.abs().amax())


def test_all_derivatives_of_value_and_slope():
    activation, x = fp.SineHuber(3.0).double(), torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(activation.linearize, x)
    assert torch.autograd.gradgradcheck(activation.linearize, x)
