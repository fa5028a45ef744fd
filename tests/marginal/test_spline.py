"""Splines: derivatives, inverses, straight tails, and the bisection that finds the piece."""

import pytest
import torch

from flowplug.marginal._spline import Spline, place


def rising(features, knots, least=0.3):
    return (torch.rand(features, knots) + least).cumsum(1) - knots / 2


def spline(features=3, knots=7):
    return Spline(rising(features, knots), rising(features, knots), torch.rand(features, knots) + 0.2)


def test_interpolates_with_the_slopes():
    s = spline()
    y, log_slope = s(s.x)
    torch.testing.assert_close((y, log_slope), (s.y, s.slope.log()))
    below = torch.nextafter(s.x, torch.tensor(-torch.inf))
    torch.testing.assert_close(s(below), (y, log_slope), atol=1e-4, rtol=1e-4)


def test_tails_are_straight():
    s, far = spline(), torch.tensor([1.0, 1e3, 1e12])
    y, log_slope = s(s.x[:, -1:] + far)
    torch.testing.assert_close(y, s.y[:, -1:] + s.slope[:, -1:] * far, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_slope, s.slope[:, -1:].log().expand(3, 3))
    y, log_slope = s(s.x[:, :1] - far)
    torch.testing.assert_close(y, s.y[:, :1] - s.slope[:, :1] * far, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_slope, s.slope[:, :1].log().expand(3, 3))


def test_log_slopes_are_those_of_autograd_and_second_derivatives_hold():
    s, x = Spline(*(part.double() for part in spline())), 4 * torch.randn(3, 40, dtype=torch.float64)
    x.requires_grad_()
    y, log_slope = s(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_slope.exp(), gradient)
    inputs = [x[:, :8].detach().requires_grad_(), *(part.requires_grad_() for part in s)]

    def run(x, *parts):
        return Spline(*parts)(x)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)
    assert torch.autograd.gradcheck(lambda y, *parts: Spline(*parts).inverse(y), inputs)


@pytest.mark.parametrize("steepest", [1.0, 1e3])
def test_inverse(steepest, eps):
    s = spline(60)
    s = s._replace(slope=s.slope * steepest ** torch.linspace(-1, 1, 7))
    x = 5 * torch.randn(60, 2000)
    y, log_slope = s(x)
    back, inverse_log_slope = s.inverse(y)
    # Both are places of the same y, but for what the rounding of y, and of a place by the slope there, is worth.
    exactly = Spline(*(part.double() for part in s))
    (wanted, log_slope_here), (there, log_slope_there) = exactly(x.double()), exactly(back.double())
    slopes = torch.maximum(log_slope_here, log_slope_there).exp().clamp(min=1)
    assert bool(((there - wanted).abs() <= 4 * eps * (1 + wanted.abs() + (1 + x.abs()) * slopes)).all())
    torch.testing.assert_close(inverse_log_slope, log_slope, atol=3e3 * eps * steepest, rtol=0)


@pytest.mark.parametrize("knots", range(1, 34))
def test_place_is_that_of_searchsorted(knots):
    at, x = torch.randn(5, 100), torch.randn(5, knots).sort(1).values
    at[:, :knots] = x
    assert torch.equal(place(at, x), torch.searchsorted(x, at, right=True))
