"""Activations with an inverse."""

import math

import pytest
import torch

import flowplug as fp


class TestActivations:
    EXAMPLES = (
        lambda: fp.SmoothLeakyReLU(0.3),
        lambda: fp.SmoothLeakyReLU(0.01),
        fp.TanhLinear,
        lambda: fp.TanhLinear(5.0, 0.01),
    )

    @pytest.mark.parametrize("make", EXAMPLES)
    def test_inverse_at_every_scale(self, make, eps):
        activation = make()
        y = torch.cat([scale * torch.randn(500, 3) for scale in (1e-6, 1.0, 10.0, 1e4)])
        x = activation.inverse(y)[0]
        torch.testing.assert_close(activation(x)[0], y, atol=10 * eps, rtol=10 * eps)

    @pytest.mark.parametrize("make", EXAMPLES)
    def test_inverse_is_differentiable(self, make):
        y = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(make().inverse, (y,))

    def test_failure_is_loud(self, monkeypatch):
        activation = fp.TanhLinear()
        monkeypatch.setattr(activation, "max_steps", 1)
        with pytest.raises(fp.NotConverged, match=r"TanhLinear was not inverted in 1 Newton steps for \d+ entries"):
            activation.inverse(torch.randn(4, 3))

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: fp.SmoothLeakyReLU(0.0), r"in \(0, 1\]; got 0.0"),
            (lambda: fp.TanhLinear(1.0, 0.0), "positive"),
            (lambda: fp.TanhLinear(math.inf, 0.1), "positive"),
        ],
    )
    def test_bad_values(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()
