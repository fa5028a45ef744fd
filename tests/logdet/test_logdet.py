"""Log-det estimators against exact oracles."""

import contextlib
import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import flowplug as fp
from cases import residual, small_mlp
from flowplug import Branch, Noise
from flowplug.logdet import default_logdet
from flowplug.testing import z_test
from helpers import Bounded, Coupled, Scale

LONG = fp.Roulette(fp.Geometric(0.03), exact=2)
SERIES = {
    "Neumann": fp.PowerSeries(terms=LONG),
    "Autograd": fp.PowerSeries(terms=LONG, gradient=fp.Autograd()),
    "Gaussian": fp.PowerSeries(terms=LONG, probes=fp.Gaussian()),
    "Recompute": fp.PowerSeries(terms=LONG, gradient=fp.Recompute()),
    "Certified": fp.PowerSeries(),
    "Krylov": fp.Krylov(),
    "Krylov Gaussian": fp.Krylov(probes=fp.Gaussian(), gradient=fp.Recompute()),
}


def draws(transform, x, leaves, weights, count):
    for _ in range(count):
        ladj = transform(x)[1]
        yield [ladj.detach(), *torch.autograd.grad(weights @ ladj, leaves)]


class TestLinearBranch:
    """g(x) = a x has log-det D log(1 + a), with derivative D / (1 + a)."""

    @pytest.mark.parametrize("a", [-0.98, -0.5, 0.5, 0.9])
    def test_exact(self, a, eps):
        transform, x = fp.ResidualTransform(Scale(a), logdet=fp.ExactLogDet()), torch.randn(5, 3)
        ladj = transform(x)[1]
        torch.testing.assert_close(ladj, torch.full((5,), 3 * math.log1p(a)), atol=1000 * eps, rtol=0)
        weights = torch.linspace(0, 1, 5)
        (gradient,) = torch.autograd.grad(weights @ ladj, transform.g.a)
        torch.testing.assert_close(gradient, weights.sum() * 3 / (1 + a), atol=0, rtol=1000 * eps)

    # The survival 0.97 exceeds 0.9 ** 2 and 0.98 ** 2: the variance is finite. 1,000 draws find a bias of a quarter of
    # a standard deviation of one draw with probability 0.999. For Krylov the second term is an invariant subspace.
    @pytest.mark.parametrize("name", SERIES)
    @pytest.mark.parametrize("a", [-0.98, 0.9])
    def test_estimates(self, a, name):
        transform, x = fp.ResidualTransform(Scale(a), logdet=SERIES[name]), torch.randn(3, 2)
        weights = torch.linspace(0, 1, 3)
        truth = [torch.full((3,), 2 * math.log1p(a)), weights.sum() * 2 / (1 + a)]
        z_test(name, draws(transform, x, [transform.g.a], weights, 1000), truth)

    @pytest.mark.parametrize("a", [-0.98, -0.5, 0.5, 0.9])
    def test_inverse(self, a, eps):
        x = torch.randn(5, 3)
        transform = fp.ResidualTransform(Scale(a))
        solution = transform.inverse((1 + a) * x)[0]
        # The condition of the problem is 1 / (1 + a), 50 at a = -0.98.
        torch.testing.assert_close(solution, x, atol=20 * eps / (1 + a), rtol=20 * eps / (1 + a))


class TestEstimatorLaw:
    def oracle(self, g, x, weights, leaves):
        ladj = fp.ResidualTransform(g, logdet=fp.ExactLogDet())(x)[1]
        return [ladj.detach(), *torch.autograd.grad(weights @ ladj, leaves)]

    # The first sample has weight 0 and the last weight 1: a backward pass that scales the batch by one sample's weight
    # is off by the whole gradient.
    @pytest.mark.parametrize("gradient", [fp.Neumann(), fp.Autograd()])
    @pytest.mark.parametrize("samples", [1, 2])
    def test_weights_from_0_to_1_and_coupled_coordinates(self, gradient, samples):
        g, x, weights = Coupled(), torch.randn(4, 4), torch.linspace(0, 1, 4)
        logdet = fp.PowerSeries(terms=fp.Roulette(fp.Geometric(0.4)), probes=fp.Rademacher(samples), gradient=gradient)
        transform = fp.ResidualTransform(g, logdet=logdet)
        truth = self.oracle(g, x, weights, [g.matrix])
        z_test("coupled", draws(transform, x, [g.matrix], weights, 2000), truth)

    def test_two_probes_halve_the_variance(self):
        g, x = Coupled(), torch.randn(2000, 4)
        terms = fp.Truncated(40)
        one, two = (
            fp.ResidualTransform(g, logdet=fp.PowerSeries(terms=terms, probes=fp.Rademacher(samples)))(x)[1].var()
            for samples in (1, 2)
        )
        # Each variance of 2,000 independent rows is known to about 5 %.
        assert 1.6 < float((one / two).detach()) < 2.5

    def test_neumann_value_equals_the_differentiated_series(self, eps):
        g, x = Coupled(), torch.randn(6, 4)
        values = []
        for gradient in (fp.Neumann(), fp.Autograd()):
            logdet = fp.PowerSeries(fp.Roulette(fp.Geometric(0.2), exact=3), gradient=gradient)
            with fp.fixed_noise(1):
                values.append(fp.ResidualTransform(g, logdet=logdet).train())
        values[1].noise_seed.copy_(values[0].noise_seed)
        with fp.fixed_noise(1):
            torch.testing.assert_close(values[0](x)[1], values[1](x)[1], atol=100 * eps, rtol=0)

    def test_truncation_is_biased_within_its_bound(self):
        a, n, size = 0.9, 3, 2
        transform = fp.ResidualTransform(Scale(a), logdet=fp.PowerSeries(terms=fp.Truncated(n)))
        error = abs(float(transform(torch.randn(1, size))[1].detach()) - size * math.log1p(a))
        bound = -size * (math.log(1 - a) + sum(a**k / k for k in range(1, n + 1)))
        assert 0.01 < error <= bound

    @pytest.mark.parametrize("logdet", [fp.ExactLogDet(), *SERIES.values()])
    def test_frozen_branch_still_passes_gradients_to_the_input(self, logdet):
        transform = fp.ResidualTransform(small_mlp().requires_grad_(requires_grad=False), logdet=logdet)
        x = torch.randn(4, 3, requires_grad=True)
        transform(x)[1].sum().backward()
        assert x.grad is not None

    @pytest.mark.parametrize("logdet", [fp.ExactLogDet(), SERIES["Neumann"]])
    def test_context_made_from_the_input_is_no_part_of_the_jacobian(self, logdet, eps):
        transform = residual(logdet=logdet, context_features=2).train()
        x = torch.randn(4, 3, requires_grad=True)
        with fp.fixed_noise(0):
            joined, apart = transform(x, x[:, :2])[1], transform(x, x[:, :2].detach())[1]
        torch.testing.assert_close(joined, apart, atol=10 * eps, rtol=0)

    def test_linearization_holds_the_context_fixed(self, eps):
        g, x = small_mlp(context_features=2), torch.randn(4, 3, requires_grad=True)
        v = torch.randn(4, 3)
        joined, apart = (Branch.of(g, c).linearize(x).vjp(v) for c in (x[:, :2], x[:, :2].detach()))
        torch.testing.assert_close(joined, apart, atol=10 * eps, rtol=0)

    def test_network_that_ignores_its_input_has_log_det_zero(self):
        class Constant(nn.Module):
            def forward(self, x):
                return 0 * x + 1

        fp.lipschitz_bound.register(Constant, lambda module: fp.LipschitzBound(0.0))
        for logdet in (fp.ExactLogDet(), *SERIES.values()):
            assert not fp.ResidualTransform(Constant(), logdet=logdet)(torch.randn(4, 3))[1].any()


class TestTerms:
    @pytest.mark.parametrize("group", [1, 4, 100])
    @pytest.mark.parametrize("length", [fp.Geometric(0.5), fp.Certified(), fp.Poisson(2.0)])
    def test_rows_continue_as_often_as_they_are_weighted_for(self, length, group):
        generator, terms = torch.Generator("cpu").manual_seed(0), fp.Roulette(length, exact=2, group=group)
        counts = torch.zeros(5000, 6, device="cpu", dtype=torch.float64)
        for row in counts:
            for k, (weight, count) in enumerate(terms.schedule(11, Bounded(0.6), generator)):
                if k < len(row):
                    row[k] = min(count, 11) * weight
        # Each row has term k with probability 1 / weight: 11 rows on average; a z-test at 5 standard errors.
        error = (counts.mean(0) - 11).abs()
        assert not counts[:, :2].std(0).any()
        assert bool((error <= 5 * counts.std(0) / math.sqrt(5000) + 1e-12).all())

    def test_single_rows_are_sampled_systematically(self):
        terms, generator = fp.Roulette(fp.Geometric(0.5), exact=1, group=1), torch.Generator("cpu").manual_seed(0)
        for _ in range(20):
            counts = [count for _, count in terms.schedule(16, Bounded(0.9), generator)]
            assert counts[:5] == [16, 8, 4, 2, 1]

    def test_counts_are_fixed_as_long_as_a_group_is_left(self):
        terms, lengths = fp.Roulette(fp.Geometric(0.7), exact=1, group=10), set()
        for seed in range(20):
            steps = list(terms.schedule(100, Bounded(0.9), torch.Generator("cpu").manual_seed(seed)))
            assert steps[:2] == [(1.0, 100), (100 / 30, 30)]
            assert {count for _, count in steps[2:]} <= {10}
            lengths.add(len(steps))
        assert len(lengths) > 1

    def test_no_rows(self):
        assert list(fp.Roulette(fp.Geometric(0.7), exact=1).schedule(0, Bounded(0.9), None)) == [(1.0, 0)]

    def test_every_row_is_as_likely_to_continue(self):
        """Marks the row that has the second term, whose weight is 8, and not the third: a chi-square test."""
        transform = fp.ResidualTransform(
            Scale(0.3), logdet=fp.PowerSeries(terms=fp.Roulette(fp.Geometric(0.9), exact=1, group=1))
        )
        x, marks = torch.zeros(8, 1), torch.zeros(8)
        for _ in range(2000):
            marks += transform(x)[1] < 0
        expected = marks.sum() / 8
        assert 1790 < float(marks.sum()) < 1890  # 1,840 expected, +- 12
        assert float(((marks - expected) ** 2 / expected).sum()) < 30  # exceeded with probability 1e-4

    def test_one_row(self):
        generator = torch.Generator("cpu").manual_seed(1)
        steps = list(fp.Roulette(fp.Geometric(0.5), exact=2).schedule(1, Bounded(0.9), generator))
        assert steps == [(1.0, 1), (1.0, 1), *((2.0**m, 1) for m in range(1, len(steps) - 1))]

    def test_certified_length_follows_the_weights_in_use(self):
        assert fp.Certified().survival(3, Bounded(0.5)) == 0.125
        with pytest.raises(fp.LipschitzError, match=r"below 1; it is 1\.5"):
            fp.Certified().survival(1, Bounded(1.5))

    @pytest.mark.parametrize(
        ("logdet", "warns"),
        [
            (fp.PowerSeries(terms=fp.Roulette(fp.Geometric(0.5))), True),
            (fp.PowerSeries(terms=fp.Roulette(fp.Poisson(10.0))), True),
            (fp.PowerSeries(terms=fp.Roulette(fp.Geometric(0.03))), False),
            (fp.PowerSeries(), False),
            (fp.PowerSeries(terms=fp.Truncated(3)), False),
            (fp.PowerSeries(terms=fp.Converged()), False),
            (fp.Krylov(terms=fp.Roulette(fp.Poisson(2.0))), False),
        ],
    )
    def test_possibly_infinite_variance_warns(self, logdet, warns):
        expected = pytest.warns(fp.InfiniteVarianceWarning, match="Use Krylov") if warns else contextlib.nullcontext()
        with expected as caught:
            fp.ResidualTransform(small_mlp(), logdet=logdet)
        assert not warns or caught[0].filename == __file__

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: fp.Truncated(0), "at least 1; got 0"),
            (lambda: fp.Geometric(1.0), r"in \(0, 1\); got 1.0"),
            (lambda: fp.Poisson(0.0), "positive; got 0.0"),
            (lambda: fp.Roulette(fp.Geometric(0.5), exact=-1), "at least 0; got -1"),
            (lambda: fp.Roulette(fp.Geometric(0.5), group=0), "at least 1; got 0"),
            (lambda: fp.Converged(0.0), "positive; got 0.0"),
            (lambda: fp.Converged(max_terms=0), "at least 1; got 0"),
            (lambda: fp.Orthogonal(samples=4).draw(torch.zeros(2, 3), None), "these have 3"),
            (lambda: fp.Rademacher(0), "at least 1; got 0"),
            (lambda: fp.Gaussian(samples=0), "at least 1; got 0"),
        ],
    )
    def test_bad_values(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()


class TestDefaults:
    def spread(self, transform, x):
        return float((transform(x)[1] - transform(x)[1]).detach().abs().max())

    def test_exact_in_low_dimension(self):
        assert self.spread(residual(event=2).train(), torch.randn(4, 2)) == 0

    def test_stochastic_in_train_mode_above_and_exact_in_eval_mode(self, eps):
        x = torch.randn(4, 100)
        transform = residual(event=100)
        assert self.spread(transform.train(), x) > 0
        oracle = fp.ResidualTransform(transform.g, logdet=fp.ExactLogDet())
        torch.testing.assert_close(transform.eval()(x)[1], oracle(x)[1].detach(), atol=100 * eps, rtol=0)

    def test_eval_mode_repeats_its_estimate_in_high_dimension(self):
        transform, x = residual(event=300).eval(), torch.randn(4, 300)
        exact = fp.ResidualTransform(transform.g, logdet=fp.ExactLogDet())(x)[1].detach()
        ladj = transform(x)[1].detach()
        assert self.spread(transform, x) == 0
        assert float((ladj - exact).abs().max()) > 0

    def test_eval_noise_differs_between_transforms(self):
        g, x = small_mlp(300), torch.randn(4, 300)
        a, b = fp.ResidualTransform(g).eval(), fp.ResidualTransform(g).eval()
        assert not torch.equal(a(x)[1], b(x)[1])

    def test_series_length_and_probes_of_fixed_noise_do_not_share_their_numbers(self):
        noise, again = Noise(torch.tensor(3)), Noise(torch.tensor(3))
        first, second = (torch.rand(5, generator=noise.generator("cpu"), device="cpu") for _ in range(2))
        assert not torch.equal(first, second)
        assert torch.equal(torch.rand(5, generator=again.generator("cpu"), device="cpu"), first)

    def test_noise_comes_from_torchs_generator_and_leaves_it_alone_in_eval_mode(self):
        transform, x = residual(event=300), torch.randn(4, 300)
        torch.manual_seed(5)
        first = transform.train()(x)[1]
        torch.manual_seed(5)
        assert torch.equal(transform(x)[1], first)
        state = torch.get_rng_state()
        transform.eval()(x)
        assert torch.equal(torch.get_rng_state(), state)

    def test_no_logdet(self, eps):
        transform, x = residual(), torch.randn(4, 3)
        with fp.no_logdet():
            y, zeros = transform(x)
            back, inverse_zeros = transform.inverse(y)
        assert not zeros.any()
        assert not inverse_zeros.any()
        torch.testing.assert_close(y, transform(x)[0], atol=10 * eps, rtol=10 * eps)
        assert transform(x)[1].any()
        assert back.requires_grad


def test_probes_use_less_variance_with_signs():
    """For one coordinate v^2 = 1: Rademacher probes estimate a scalar Jacobian exactly."""
    series = fp.PowerSeries(terms=fp.Truncated(60))
    transform = fp.ResidualTransform(Scale(0.5), logdet=series)
    ladj = transform(torch.randn(5, 1))[1]
    torch.testing.assert_close(ladj, torch.full((5,), math.log(1.5)), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("device", "shape", "training", "exact"),
    [
        ("cpu", (7, 4), True, True),
        ("cpu", (7, 5), True, False),
        ("cpu", (7, 2, 8, 8), False, True),
        ("cpu", (7, 129), False, False),
        ("cuda", (512, 64), True, True),
        ("cuda", (513, 64), True, False),
        ("cuda", (7, 3, 4, 4), True, False),
        ("cuda", (7, 2, 2), True, True),
        ("cuda", (7, 65), True, False),
        ("cuda", (99_999, 4), True, True),
        ("cuda", (7, 129), False, False),
    ],
)
def test_the_default_is_exact_where_that_is_cheap(device, shape, training, exact):
    with FakeTensorMode():  # devices that need not be there
        logdet = default_logdet(torch.empty(shape, device=device), training=training)
    assert isinstance(logdet, fp.ExactLogDet if exact else fp.Krylov)
