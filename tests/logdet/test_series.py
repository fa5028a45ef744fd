"""Every series against the exact log-det, by z-tests and by its own bound."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import flowplug as fp
from cases import residual, small_mlp
from flowplug.testing import z_test
from helpers import UNTRAINED, Basis, Coupled, Matrix, Scale, assert_all_close, value_and_gradients

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

    # The survival 0.97 exceeds 0.9 ** 2 and 0.98 ** 2: the variance is finite. 1,000 draws find a bias of a quarter of
    # a standard deviation of one draw with probability 0.999. For Krylov the second term is an invariant subspace.
    @pytest.mark.parametrize(
        "name",
        [pytest.param(n, marks=pytest.mark.slow if series.terms == LONG else ()) for n, series in SERIES.items()],
    )
    @pytest.mark.parametrize("a", [pytest.param(-0.98, marks=pytest.mark.slow), 0.9])
    def test_estimates(self, a, name):
        transform, x = fp.ResidualTransform(Scale(a), logdet=SERIES[name]), torch.randn(3, 2)
        weights = torch.linspace(0, 1, 3)
        truth = [torch.full((3,), 2 * math.log1p(a)), weights.sum() * 2 / (1 + a)]
        z_test(name, draws(transform, x, [transform.g.a], weights, 1000), truth)


class TestEstimatorLaw:
    def oracle(self, g, x, weights, leaves):
        ladj = fp.ResidualTransform(g, logdet=fp.ExactLogDet())(x)[1]
        return [ladj.detach(), *torch.autograd.grad(weights @ ladj, leaves)]

    # The first sample has weight 0 and the last weight 1: a backward pass that scales the batch by one sample's weight
    # is off by the whole gradient.
    @pytest.mark.parametrize("gradient", [fp.Neumann(), fp.Autograd()])
    @pytest.mark.parametrize("samples", [1, pytest.param(2, marks=pytest.mark.slow)])
    def test_weights_from_0_to_1_and_coupled_coordinates(self, gradient, samples):
        g, x, weights = Coupled(), torch.randn(4, 4), torch.linspace(0, 1, 4)
        logdet = fp.PowerSeries(terms=fp.Roulette(fp.Geometric(0.4)), probes=fp.Rademacher(samples), gradient=gradient)
        transform = fp.ResidualTransform(g, logdet=logdet)
        truth = self.oracle(g, x, weights, [g.matrix])
        z_test("coupled", draws(transform, x, [g.matrix], weights, 2000), truth)

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

    def test_network_that_ignores_its_input_has_log_det_zero(self):
        class Constant(nn.Module):
            def forward(self, x):
                return 0 * x + 1

        fp.lipschitz_bound.register(Constant, lambda module: fp.LipschitzBound(0.0))
        for logdet in (fp.ExactLogDet(), *SERIES.values()):
            assert not fp.ResidualTransform(Constant(), logdet=logdet)(torch.randn(4, 3))[1].any()


class TestConverged:
    @pytest.mark.parametrize("make", [fp.Krylov, fp.PowerSeries])
    @pytest.mark.parametrize("gradient", [fp.Neumann(), fp.Recompute(), fp.Autograd()])
    def test_converged_is_within_its_bound(self, make, gradient):
        if make is fp.Krylov and gradient == fp.Autograd():
            with pytest.raises(TypeError, match="Neumann"):
                make(gradient=gradient)
            return
        # In few dimensions a projection may be exact, and nothing would be left of the error.
        size, rtol = 12, 1e-2
        matrix, x = torch.randn(size, size), torch.randn(6, size)
        g = Matrix(0.6 * matrix / torch.linalg.matrix_norm(matrix, 2), norm=2.0)
        logdet = make(terms=fp.Converged(rtol), probes=Basis(size), gradient=gradient)
        (value, *_), (exact, *_) = (value_and_gradients(g, ld, x) for ld in (logdet, fp.ExactLogDet()))
        # Per probe of square D the error of v^T log(I + J) v is at most D rtol L / (1 - L), and it is averaged.
        error = float((value - exact).abs().max())
        assert 1e-8 < error <= size * rtol * 0.6 / 0.4

    @pytest.mark.parametrize("make", [fp.Krylov, fp.PowerSeries])
    def test_not_converged(self, make):
        transform = fp.ResidualTransform(Coupled(), logdet=make(terms=fp.Converged(1e-6, max_terms=2)))
        with pytest.raises(fp.NotConverged, match="1e-06 in 2 terms"):
            transform(torch.randn(3, 4))

    def test_rows_stop_one_by_one(self):
        """A nilpotent Jacobian in some rows: the others alone are multiplied on."""

        class PerRow(Matrix):
            def forward(self, x):
                return torch.where(x[:, :1] > 0, x @ self.matrix.T, 0 * x)

        fp.lipschitz_bound.register(PerRow, lambda module: fp.LipschitzBound(0.9, limit=UNTRAINED))
        g = PerRow(0.9 * torch.linalg.qr(torch.randn(5, 5)).Q, 2)
        x = torch.randn(8, 5)
        x[:, 0] = torch.tensor([1.0, -1.0]).repeat(4)
        sizes, keep = [], fp.logdet.Recurrence.keep
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                fp.logdet.Recurrence, "keep", lambda self, index: sizes.append(len(index)) or keep(self, index)
            )
            logdet = fp.Krylov(terms=fp.Converged(1e-12), probes=Basis(5))
            got = value_and_gradients(g, logdet, x)
        assert sizes[0] == 4
        assert_all_close(got, value_and_gradients(g, fp.ExactLogDet(), x), 1e-3)


@dataclass(frozen=True)
class OfTwoTerms(fp.Neumann):
    """A user's gradient, which refuses longer series."""

    def check(self, series):
        if series.terms != fp.Truncated(2):
            raise TypeError(f"OfTwoTerms() got {series.terms}")


class TestCheck:
    @pytest.mark.parametrize("make", [fp.Krylov, fp.PowerSeries])
    @pytest.mark.parametrize(
        "gradient", [OfTwoTerms(), fp.Recompute(OfTwoTerms()), fp.Recompute(fp.Recompute(OfTwoTerms()))]
    )
    def test_a_series_asks_its_gradient(self, gradient, make):
        series = make(terms=fp.Truncated(2), gradient=gradient)
        assert fp.ResidualTransform(small_mlp(), logdet=series)(torch.randn(4, 3))[1].shape == (4,)
        with pytest.raises(TypeError, match=r"OfTwoTerms\(\) got Truncated\(n=3\)"):
            replace(series, terms=fp.Truncated(3))
        with pytest.raises(TypeError, match=r"OfTwoTerms\(\) got Roulette"):
            make(gradient=gradient)

    @pytest.mark.parametrize("gradient", [fp.Neumann(), fp.Recompute()])
    @pytest.mark.parametrize("series", [fp.Krylov(), fp.PowerSeries()])
    def test_neumann_differentiates_every_series(self, series, gradient):
        gradient.check(series)
        assert replace(series, gradient=gradient).gradient == gradient

    def test_a_subclass_is_refused_by_its_own_name(self):
        class Own(fp.Krylov):
            pass

        with pytest.raises(TypeError, match=r"Own\(gradient=...\) must not be Autograd"):
            Own(gradient=fp.Autograd())

    def test_the_interface_is_abstract(self):
        with pytest.raises(TypeError, match="abstract"):
            fp.Gradient()
