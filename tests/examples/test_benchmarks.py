"""What the benchmarks measure, on sizes where it is known; CI runs them as a whole."""

import math
from itertools import pairwise

import pytest
import torch

import flowplug as fp
from benchmarks import dense, equal_time, histograms, lipschitz, marginals, recipe, spectra, speed, target, variance
from benchmarks.models import inverted, jacobians, likelihood_loss, residual_parts, trained_stack
from common.densities import log_prob, of_transform
from common.tables import load
from common.training import Options
from common.trial import fit


class TestModels:
    def test_parts_are_met_in_the_order_of_the_flow(self):
        flow, x = fp.ResidualStack(3, 2).eval(), torch.randn(5, 3)
        (_, first), (last, x_last) = residual_parts(flow, x)
        torch.testing.assert_close(first, x)  # whitening and a matrix that start as the identity
        torch.testing.assert_close(flow.transforms[-1](last(x_last)[0])[0], flow(x)[0])

    def test_jacobians_are_those_of_g(self):
        transform, x = fp.ResidualTransform(fp.LipschitzMLP(3)), torch.randn(4, 3)
        wanted = torch.stack([torch.autograd.functional.jacobian(transform.g, row) for row in x])
        torch.testing.assert_close(jacobians(transform, x), wanted, atol=1e-5, rtol=1e-4)

    def test_evaluations_are_counted_by_row(self):
        g, x = fp.LipschitzMLP(3, bound=0.5), torch.randn(50, 3)
        back, plain = inverted(g, fp.FixedPoint(tol=1e-4), x + g(x).detach())
        torch.testing.assert_close(back, x, atol=1e-4, rtol=0)
        _, exact = inverted(g, fp.FixedPoint(tol=1e-6), x + g(x).detach())
        assert 1 < plain < exact < 25  # each halves the error

    def test_a_trained_stack_is_better_than_none(self, table):
        rows = load(table).train
        flow = trained_stack(rows, 1, 30)
        assert not flow.training
        untrained = fp.ComposedTransform(fp.ActNorm(6)).eval()
        with torch.no_grad():
            assert log_prob(flow, rows).mean() > log_prob(untrained, rows).mean()

    def test_the_loss_is_the_negative_log_likelihood(self):
        parts = [fp.ResidualTransform(fp.LipschitzMLP(2)) for _ in range(2)]
        x = torch.randn(5, 2)
        wanted = -log_prob(fp.ComposedTransform(*parts), x).mean() - math.log(2 * math.pi)
        torch.testing.assert_close(likelihood_loss(parts, x), wanted)


@pytest.mark.slow
class TestVariance:
    @pytest.fixture(autouse=True)
    def _double(self):
        torch.set_default_dtype(torch.float64)

    def test_the_projection_on_the_whole_space_has_none(self):
        found = variance.variances(torch.linspace(0.5, 0.9, 9).reshape(9, 1, 1))
        assert float(found["floor"].max()) < 1e-20  # signs know a 1 x 1 matrix
        assert float(found["Krylov"].max()) < 1e-20
        assert float(found["PowerSeries"].min()) > 1e-3

    def test_lengths_average_to_the_limit(self):
        g = variance.Linear(0.2 * torch.randn(16, 4, 4))
        wanted = variance.estimate(g, fp.Krylov(terms=fp.Truncated(5), control=None))
        for make in (fp.PowerSeries, fp.Krylov):
            parts = [variance.estimate(g, make(terms=variance.Stopped(n), control=None)) for n in range(2, 60)]
            for i in range(2):
                mean = sum(0.5 ** (n + 1) * part[i] for n, part in enumerate(parts))
                torch.testing.assert_close(mean, wanted[i], atol=1e-6, rtol=1e-6)


class TestSpectra:
    def test_the_noise_of_a_roulette_is_that_of_its_lengths(self):
        length, parts = fp.Geometric(0.5, share=0.6), [0.0, 1.0, 3.0, 2.0, 2.5]  # no more is added
        estimates = [(torch.tensor([part]), torch.tensor([[2 * part]])) for part in parts[1:]]
        survivals = [1.0, 1.0, length.survival(1), length.survival(2), 0.0]
        steps = [(b - a) / p for (a, b), p in zip(pairwise(parts), survivals, strict=False)]
        chances = {n: survivals[n - 1] - survivals[n] for n in (2, 3, 4)}
        wanted = sum(chance * (sum(steps[:n]) - 2.5) ** 2 for n, chance in chances.items())
        found = spectra.added(estimates, estimates[-1], length)
        torch.testing.assert_close(found, torch.tensor([wanted, 4 * wanted]))

    def test_every_estimator_is_measured(self, table):
        settings = spectra.Settings(features=3, data=table, steps=2, blocks=1, rows=4, longest=5)
        assert len(list(spectra.measure(settings))) == 4 * len(spectra.ESTIMATORS)
        assert spectra.ESTIMATORS["Krylov, default"][1] == fp.Krylov().terms.length


class TestDense:
    def test_all_losses_are_one(self):
        flow, x = dense.dense_flow(4, fp.Relative(), fp.ExactValue()), torch.randn(7, 4)
        wanted = dense.ours(flow, x) - 2 * math.log(2 * math.pi)
        torch.testing.assert_close(dense.slogdet(flow, x), wanted)
        torch.testing.assert_close(dense.jacobian(flow, x), wanted)

    @pytest.mark.parametrize("method", dense.METHODS)
    def test_every_method_steps(self, method):
        dense.two_steps(method, 4)

    def test_both_gradients_learn_from_equal_starts(self):
        euclidean, relative = (
            [figures for _, setting, figures in dense.learning(dense.Settings(epochs=4)) if setting["gradient"] == name]
            for name in ("Euclidean", "Relative")
        )
        # The first matrices are orthogonal, for which one step is the same.
        assert all(
            a["loss of step 4"].value != b["loss of step 4"].value for a, b in zip(euclidean, relative, strict=True)
        )


class TestLipschitz:
    def test_the_identity_has_norm_one(self):
        kernel = torch.zeros(2, 2, 3, 3)
        kernel[:, :, 1, 1] = torch.eye(2)
        assert lipschitz.operator_norm(kernel, 5) == pytest.approx(1)

    def test_attacks_enlarge_the_jacobian(self):
        layer = fp.LipschitzLinear(8, 8, bound=10.0)
        first, *_, last = lipschitz.attacked(layer, 64, 8, steps=40)
        assert float(torch.linalg.matrix_norm(last, 2)) > 1.2 * float(torch.linalg.matrix_norm(first, 2))

    def test_shares_are_of_the_whole(self):
        def work():
            sum(range(100_000))

        assert 0.1 < lipschitz.share(work, lambda: [work() for _ in range(4)], 3) < 0.6


class TestRecipe:
    @pytest.mark.parametrize("name", recipe.NAMES)
    def test_every_flow_trains_within_its_bound(self, name):
        flow = recipe.flow_of(name, 4, 1)
        fit(of_transform(flow, 4), lambda rows: torch.randn(rows, 4), Options(steps=3, batch=16))
        assert 0 < recipe.use_of_bound(flow.eval(), torch.randn(30, 4)).most < 1.0001

    def test_a_sandwich_is_within_its_bound_whatever_its_parameters(self):
        g = recipe.Sandwich(4, 16, activation=recipe.HalfSine)
        for parameter in g.parameters():
            torch.nn.init.normal_(parameter)
        ((part, x),) = residual_parts(fp.ComposedTransform(fp.ResidualTransform(g)), torch.randn(100, 4))
        assert float(torch.linalg.matrix_norm(jacobians(part, x), 2).max()) <= 0.97 + 1e-4


@pytest.mark.parametrize("name", equal_time.MODELS)
def test_every_model_trains(name):
    density, x = equal_time.MODELS[name][1](4, 1), torch.randn(16, 4)
    (-density(x).mean()).backward()
    density.after_step()


def test_bare_networks_have_no_log_det():
    g, x = fp.LipschitzMLP(3), torch.randn(5, 3)
    y, ladj = speed.bare(g, x)
    torch.testing.assert_close(y, x + g(x))
    assert torch.equal(ladj, torch.zeros(5))


def test_a_curve_ends_at_its_target(table):
    data, density = load(table), equal_time.same_networks(6, 1)
    settings, options = target.Settings(seconds=60, every=1), Options(steps=50)
    points = list(target.curve("", density, data, settings, options, target=-1e9))
    assert len(points) == 1


class TestMarginals:
    def test_histograms_are_densities(self):
        """They integrate to 1 over the cells and both tails, for tied values as well."""
        rows = torch.stack([torch.randn(500), torch.randint(3, (500,)).float()], 1).float()
        for column in rows.T[..., None]:
            grid = torch.linspace(-15, 15, 600_001)[:, None]
            density = marginals.histogram(column, grid).double().exp()
            assert float(density.sum() * 30 / 600_000) == pytest.approx(1, abs=0.02)

    def test_starts_are_measured_on_test_rows(self, table):
        settings = marginals.Settings(rows=100, flows=("zuko-maf",), parameters=500, batch=20, rounds=2)
        data = load(table)
        ((name, setting, figures),) = marginals.starts(settings, data)
        assert (name, setting["D"], setting["rows"]) == ("Marginals before training", data.features, 100)
        assert figures["splines, whitening"].value > figures["splines"].value
        ((_, _, ratios),) = marginals.steps(settings, data)
        assert ratios["with / without"].value > 0.5


def test_images_of_even_noise_take_all_bits():
    """Up to what the histogram, started from some of it, gets wrong."""
    even = torch.randint(16, (4000, 3)).to(torch.get_default_dtype())
    flow = fp.HistogramGaussianization(3, levels=16)
    flow.start(histograms.dequantised(even, 16))
    bits = histograms.bits_per_dimension(flow, histograms.dequantised(even, 16), 16)
    assert float(bits.mean()) == pytest.approx(4, abs=0.01)
