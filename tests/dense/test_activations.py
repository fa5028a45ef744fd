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
    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_inverse_over_the_whole_range(self, make, sign, eps):
        activation = make()
        x = sign * torch.tensor([0.0, torch.finfo(torch.get_default_dtype()).tiny / 64, *10.0 ** torch.arange(-30, 31)])
        y = activation(x)[0]
        back, ladj = activation.inverse(y)
        torch.testing.assert_close(activation(back)[0], y, atol=10 * eps, rtol=10 * eps)
        # Where the function is not flat next to its value, x is found as well.
        torch.testing.assert_close(back, x, atol=1000 * eps, rtol=1000 * eps)
        torch.testing.assert_close(ladj, -activation(back)[1], atol=10 * eps, rtol=10 * eps)

    def test_tiny_numbers_keep_their_digits(self, eps):
        """Near 0 the function is a line through 0."""
        activation, y = fp.TanhLinear(), 10.0 ** torch.arange(-30, -4)
        torch.testing.assert_close(activation.inverse(y)[0], y / 1.1, atol=0, rtol=1e-6)

    def test_the_largest_numbers(self):
        largest = torch.finfo(torch.get_default_dtype()).max
        for activation in (fp.SmoothLeakyReLU(0.3), fp.TanhLinear(1.0, 0.5)):
            y = activation(torch.tensor([0.9 * largest, -0.9 * largest]))[0]
            back = activation.inverse(y)[0]
            torch.testing.assert_close(back / largest, torch.tensor([0.9, -0.9]))

    @pytest.mark.parametrize("make", EXAMPLES)
    def test_inverse_is_differentiable(self, make):
        y = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(make().inverse, (y,), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(make().inverse, (y,))

    @pytest.mark.parametrize("make", [fp.SmoothLeakyReLU, fp.TanhLinear])
    @pytest.mark.parametrize("event_dim", [0, 1, 2])
    @pytest.mark.parametrize("shape", [(3, 2), (0, 2), (2, 0), (4, 3, 2)])
    def test_events_of_any_dimension(self, make, event_dim, shape, eps):
        activation, x = make(event_dim=event_dim), torch.randn(shape)
        y, ladj = activation(x)
        wanted = make(event_dim=1)(x[..., None])[1]
        assert ladj.shape == shape[: len(shape) - event_dim]
        for _ in range(event_dim):
            wanted = wanted.sum(-1)
        torch.testing.assert_close(ladj, wanted, atol=100 * eps, rtol=0)
        back, inverse_ladj = activation.inverse(y)
        torch.testing.assert_close(back, x, atol=100 * eps, rtol=0)
        torch.testing.assert_close(inverse_ladj, -ladj, atol=100 * eps, rtol=0)

    def test_an_entry_alone(self, eps):
        activation = fp.SmoothLeakyReLU(event_dim=0)
        y, ladj = activation(torch.tensor(0.5))
        assert ladj.shape == ()
        torch.testing.assert_close(activation.inverse(y)[0], torch.tensor(0.5), atol=10 * eps, rtol=0)

    @pytest.mark.parametrize("event_dim", [-1, 1.5, "1", True, None])
    def test_no_such_events(self, event_dim):
        for make in (fp.SmoothLeakyReLU, fp.TanhLinear):
            with pytest.raises(
                (TypeError, fp.ShapeError), match=rf"{make.__name__}\(event_dim=\.\.\.\) must be (an int|at least 0)"
            ):
                make(event_dim=event_dim)

    @pytest.mark.parametrize("value", ["0.3", None, True, [0.3]])
    def test_no_numbers(self, value):
        with pytest.raises(TypeError, match=r"SmoothLeakyReLU\(negative_slope=\.\.\.\) must be a number; got"):
            fp.SmoothLeakyReLU(value)
        with pytest.raises(TypeError, match=r"TanhLinear\(linear=\.\.\.\) must be a number; got"):
            fp.TanhLinear(1.0, value)

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
