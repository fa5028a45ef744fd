"""Dequantisation, and bits a dimension against the exact probabilities of levels."""

import dataclasses
import math

import pytest
import torch

import flowplug as fp


class TestDequantize:
    @pytest.mark.parametrize("levels", [2, 3, 8, 200, 256, 65536])
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
    def test_stays_within_its_level(self, levels, dtype):
        pixels = torch.randint(0, min(levels, 256), (64, 1, 8, 8)).to(dtype)
        x = fp.Dequantize(levels)(pixels)
        assert (x.dtype, x.device, x.shape) == (torch.get_default_dtype(), pixels.device, pixels.shape)
        assert torch.equal((levels * x).floor().to(dtype), pixels)
        assert 0 < x.min() <= x.max() < 1

    @pytest.mark.usefixtures("users_defaults")
    def test_single_precision_at_the_top_level(self):
        pixels = torch.full((200_000,), 255, dtype=torch.uint8)
        assert fp.Dequantize()(pixels).max() < 1

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("levels", [2, 200, 256, 65536])
    def test_noise_of_the_first_and_the_last_step(self, levels, dtype, monkeypatch):
        torch.set_default_dtype(dtype)
        pixels = torch.arange(levels)
        for pick in (lambda steps: 0, lambda steps: steps - 1):
            monkeypatch.setattr(torch, "randint", lambda n, shape, pick=pick, **_: torch.full(shape, pick(n)))
            x = fp.Dequantize(levels)(pixels)
            assert 0 < x.min() <= x.max() < 1
            assert torch.equal((levels * x).floor(), pixels.to(dtype))

    def test_noise_is_uniform(self):
        noise = 256 * fp.Dequantize()(torch.zeros(40_000, dtype=torch.uint8))
        # Within five standard errors of the moments of a uniform number.
        assert abs(float(noise.mean()) - 1 / 2) < 5 / math.sqrt(12 * len(noise))
        assert abs(float((noise - 0.5).square().mean()) - 1 / 12) < 5 * math.sqrt(1 / 180 / len(noise))

    def test_noise_is_new_and_torchs_own(self):
        pixels, dequantize = torch.zeros(9, dtype=torch.uint8), fp.Dequantize()
        torch.manual_seed(3)
        first, second = dequantize(pixels), dequantize(pixels)
        assert not torch.equal(first, second)
        torch.manual_seed(3)
        assert torch.equal(first, dequantize(pixels))
        seeded = [dequantize(pixels, generator=torch.Generator(pixels.device).manual_seed(7)) for _ in range(2)]
        assert torch.equal(*seeded)

    def test_half_precision_is_not_enough(self):
        torch.set_default_dtype(torch.bfloat16)
        assert fp.Dequantize()(torch.zeros(3, dtype=torch.uint8)).dtype == torch.float32

    def test_what_is_no_level(self):
        with pytest.raises(fp.DtypeError, match=r"integers from 0 to 255; got torch.float32: pass the pixels as they"):
            fp.Dequantize()(torch.rand(3, dtype=torch.float32))
        with pytest.raises(fp.DtypeError, match=r"got torch\.bool"):
            fp.Dequantize(2)(torch.ones(3, dtype=torch.bool))
        with pytest.raises(fp.DomainError, match="levels from 0 to 15; got some from 3 to 16"):
            fp.Dequantize(16)(torch.tensor([3, 16], dtype=torch.uint8))
        with pytest.raises(fp.DomainError, match="levels from 0 to 255; got some from -1 to 4"):
            fp.Dequantize()(torch.tensor([4, -1]))
        with pytest.raises(TypeError, match="must be a Tensor"):
            fp.Dequantize()([3])
        assert fp.Dequantize(16)(torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 2)

    @pytest.mark.parametrize("levels", [1, 0, 2**16 + 1])
    def test_numbers_of_levels(self, levels):
        with pytest.raises(ValueError, match=f"from 2 to 65536; got {levels}"):
            fp.Dequantize(levels)

    def test_is_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            fp.Dequantize().levels = 3


def standard_normal(y):
    return torch.distributions.Normal(0.0, 1.0).log_prob(y).sum(-1)


class TestBitsPerDim:
    def test_of_a_density_that_is_constant_in_each_level_is_exact(self):
        """The bits of levels under a model whose probabilities are known, by its density."""
        levels = 16
        weights = torch.rand(levels) + 0.1
        data = torch.multinomial(weights, 60_000, replacement=True).reshape(-1, 3)
        flow = fp.HistogramGaussianization(3, levels=levels)
        flow.start(fp.Dequantize(levels)(data))
        flow.eval()
        # The probability of a level is the integral of the density, and there is some beyond the grid.
        edges = torch.linspace(0, 1, levels + 1)[:, None].expand(-1, 3)
        mass = torch.distributions.Normal(0.0, 1.0).cdf(flow(edges)[0]).diff(dim=0)
        wanted = -mass.log2().gather(0, data).mean()
        y, ladj = flow(fp.Dequantize(levels)(data))
        bits = fp.bits_per_dim(standard_normal(y) + ladj, 3, levels=levels)
        assert bits.shape == (20_000,)
        torch.testing.assert_close(bits.mean(), wanted, rtol=1e-4, atol=0)

    @pytest.mark.parametrize("alpha", [0, 0.05])
    def test_of_a_model_with_its_logit(self, alpha):
        """Logistic latents of a logit are uniform on its interval: each level has 1 - 2 alpha of 1/256."""
        x = fp.Dequantize()(torch.randint(0, 256, (50, 1, 4, 4)))
        y, ladj = fp.Logit(alpha)(x)
        log_prob = (torch.nn.functional.logsigmoid(y) + torch.nn.functional.logsigmoid(-y)).sum((1, 2, 3)) + ladj
        bits = fp.bits_per_dim(log_prob, (1, 4, 4))
        torch.testing.assert_close(bits, torch.full((50,), 8 - math.log2(1 - 2 * alpha)))

    def test_is_a_bound_on_the_bits_of_the_levels(self):
        """Two levels under a density that is not constant in them."""
        slope = 1.5  # p(x) = 1 + slope (x - 1/2) on [0, 1]
        data = torch.randint(0, 2, (200_000, 1))
        x = fp.Dequantize(2)(data)
        bits = fp.bits_per_dim((1 + slope * (x - 0.5)).log().sum(-1), 1, levels=2).mean()
        exact = -(torch.tensor([1 - slope / 4, 1 + slope / 4]) / 2).log2().mean()
        assert float(exact) + 0.01 < float(bits) < float(exact) + 0.1

    def test_units_of_the_data(self):
        """Pixels from -1 to 1 have half the density, and the same bits."""
        log_prob = torch.randn(5)
        shifted = log_prob - 12 * math.log(2)
        torch.testing.assert_close(
            fp.bits_per_dim(shifted, (3, 2, 2), low=-1.0, high=1.0), fp.bits_per_dim(log_prob, (3, 2, 2))
        )

    def test_is_differentiable(self):
        log_prob = torch.randn(5, requires_grad=True)
        fp.bits_per_dim(log_prob, (3, 2, 2)).sum().backward()
        torch.testing.assert_close(log_prob.grad, torch.full((5,), -1 / (12 * math.log(2))))

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"event_shape": (0, 3)}, fp.ShapeError, "positive sizes"),
            ({"event_shape": 2.5}, TypeError, "event_shape"),
            ({"levels": 0}, ValueError, "levels of at least 1 .*; got 0"),
            ({"low": 1.0}, ValueError, "low < high"),
            ({"low": math.nan}, ValueError, "low < high"),
            ({"high": "1"}, TypeError, "high"),
            ({"log_prob": 3.0}, TypeError, "log_prob"),
        ],
    )
    def test_arguments(self, arguments, error, message):
        with pytest.raises(error, match=message):
            fp.bits_per_dim(**{"log_prob": torch.zeros(2), "event_shape": (1, 2, 2), **arguments})
