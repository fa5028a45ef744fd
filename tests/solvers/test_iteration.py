"""The iteration under every solver: sample by sample to rounding, and loud when it fails."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import flowplug as fp
from cases import residual
from helpers import SOLVERS, Scale, trained_to_stretch


@pytest.mark.parametrize("a", [-0.98, -0.5, 0.5, 0.9])
def test_inverse(a, eps):
    x = torch.randn(5, 3)
    transform = fp.ResidualTransform(Scale(a))
    solution = transform.inverse((1 + a) * x)[0]
    # The condition of the problem is 1 / (1 + a), 50 at a = -0.98.
    torch.testing.assert_close(solution, x, atol=20 * eps / (1 + a), rtol=20 * eps / (1 + a))


class Wrong(nn.Module):
    """A bounded, periodic g with slope up to 1.5, registered as 0.9."""

    def forward(self, x):
        return 1.5 * torch.sin(x)


@fp.lipschitz_bound.register
def _(module: Wrong):
    return fp.LipschitzBound(0.9)


class TestRoundTrip:
    # 0.97 per residual layer, and 0.97 per layer of g.
    @pytest.mark.slow
    @pytest.mark.parametrize("bound", [0.97, 0.97**3])
    @pytest.mark.parametrize("norm", [fp.InfNorm(), fp.Gram()])
    @pytest.mark.parametrize("solver", SOLVERS)
    def test_10_000_points(self, bound, norm, solver, eps):
        networks = [fp.LipschitzMLP(6, (32, 32), bound=bound, norm=norm) for _ in range(4)]
        parts = [fp.ResidualTransform(g, solver=solver) for g in networks]
        flow = fp.ComposedTransform(*parts)
        x = torch.randn(10_000, 6)
        limit = 1e-12 if x.dtype == torch.float64 else 1e-5
        with torch.no_grad(), fp.no_logdet():
            error = (flow.inverse(flow(x)[0])[0] - x).abs().amax()
        assert float(error) <= limit
        # Weights at their worst and points far out: rounding alone may move x by (1 / (1 - L)) ** 4 units, a million,
        # but the equation f(x) = y is still met to rounding of x, which may be a thousand times as large.
        trained_to_stretch(flow, 6).eval()
        y = 10 * x
        with torch.no_grad(), fp.no_logdet():
            x = flow.inverse(y)[0]
            defect = (flow(x)[0] - y).abs().amax()
        assert float(defect) <= 10 * eps * float(x.abs().amax())

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_each_sample_is_solved_as_if_alone(self, solver, eps):
        transform = trained_to_stretch(residual(solver=solver), 3).eval()
        y = torch.cat([torch.zeros(1, 3), 100 * torch.randn(20, 3)])
        with torch.no_grad():
            together = transform.inverse(y)[0]
            alone = torch.cat([transform.inverse(row[None])[0] for row in y])
        # Each is right to rounding of its largest entry, as g mixes entries, times the condition of the problem.
        allowed = 10 * eps / (1 - float(transform.lipschitz))
        size = 1 + alone.abs().amax(dim=1)
        assert float(((together - alone).abs().amax(dim=1) / size).max()) <= allowed

    def test_finished_samples_leave_the_batch(self):
        sizes = []

        class Spy(fp.LipschitzMLP):
            def branch(self, context):
                branch = super().branch(context)
                select = branch.select

                def spied(index):
                    sizes.append(len(index))
                    return select(index)

                branch.select = spied
                return branch

        transform = fp.ResidualTransform(Spy(3, (8,)))
        # Half of the samples start at their solution g(0) = 0 of a branch without shifts.
        nn.init.zeros_(transform.g.layers[0].bias)
        nn.init.zeros_(transform.g.layers[1].bias)
        transform.inverse(torch.cat([torch.zeros(6, 3), torch.randn(4, 3)]))
        assert sizes[0] == 4

    @pytest.mark.parametrize("tol", [1e-1, 1e-3])
    @pytest.mark.parametrize("solver", SOLVERS)
    def test_tolerance_bounds_the_error(self, solver, tol):
        g = trained_to_stretch(residual(), 3).g
        loose, sharp = fp.ResidualTransform(g, solver=replace(solver, tol=tol)), fp.ResidualTransform(g)
        y = torch.randn(200, 3) / 2  # further out 1e-3 is below rounding in single precision
        with torch.no_grad():
            error = (loose.inverse(y)[0] - sharp.inverse(y)[0]).abs().amax()
        assert 0 < float(error) <= tol

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_tolerance_below_rounding_ends_at_rounding(self, solver, eps):
        g = residual().g
        x = torch.randn(200, 3)
        with torch.no_grad():
            y = fp.ResidualTransform(g)(x)[0]
            solved = fp.ResidualTransform(g, solver=replace(solver, tol=1e-30)).inverse(y)[0]
        torch.testing.assert_close(solved, x, atol=100 * eps, rtol=100 * eps)


class TestFailure:
    @pytest.mark.parametrize("direction", ["plain", "no_grad"])
    @pytest.mark.parametrize("solver", SOLVERS)
    def test_wrong_bound(self, direction, solver):
        """Noticed by the first plain step that gains less than the bound promises."""
        transform = fp.ResidualTransform(Wrong(), solver=solver)
        with (
            torch.set_grad_enabled(direction == "plain"),
            pytest.raises(fp.NotConverged, match=r"50 samples .* 2 steps"),
        ):
            transform.inverse(3 * torch.randn(50, 2))

    @pytest.mark.parametrize("solver", [fp.FixedPoint(max_steps=3), fp.Anderson(max_steps=3)])
    def test_step_limit(self, solver):
        transform = residual(solver=solver)
        name = type(solver).__name__
        with pytest.raises(fp.NotConverged, match=rf"in 3 steps: worst residual .* raise {name}\(max_steps"):
            transform.inverse(torch.randn(5, 3))

    @pytest.mark.parametrize("keywords", [{"tol": 0.0}, {"tol": -1.0}, {"max_steps": 0}])
    def test_bad_values(self, keywords):
        for make in (fp.FixedPoint, fp.Anderson):
            with pytest.raises(ValueError, match=make.__name__):
                make(**keywords)

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_empty_batch(self, solver):
        x, ladj = residual(solver=solver).inverse(torch.empty(0, 3))
        assert x.shape == (0, 3)
        assert ladj.shape == (0,)
