"""The inverse: certified, loud when it fails, and differentiable once."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import flowplug as fp
from cases import residual, small_mlp


class Wrong(nn.Module):
    """A bounded, periodic g with slope up to 1.5, registered as 0.9."""

    def forward(self, x):
        return 1.5 * torch.sin(x)


@fp.lipschitz_bound.register
def _(module: Wrong):
    return fp.LipschitzBound(0.9)


class Growing(nn.Module):
    """An unbounded g of slope 1.5, registered as 0.9."""

    def forward(self, x):
        return -1.5 * x


@fp.lipschitz_bound.register
def _(module: Growing):
    return fp.LipschitzBound(0.9)


SOLVERS = [fp.FixedPoint(), fp.Anderson(), fp.Anderson(memory=1)]


def trained_to_stretch(transform, size, steps=30):
    """Drives the weights of g to their bound."""
    optimizer = torch.optim.Adam(transform.parameters(), lr=0.02)
    for _ in range(steps):
        x = torch.randn(32, size)
        optimizer.zero_grad()
        (-(transform(x)[1] ** 2).mean()).backward()
        optimizer.step()
    return transform


class TestRoundTrip:
    # 0.97 per residual layer, and 0.97 per layer of g.
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

    def test_anderson_needs_a_third_of_the_evaluations(self):
        """On a map of slopes from -0.95 to 0.95, at equal tolerance."""
        basis, counts = torch.linalg.qr(torch.randn(10, 10)).Q, {}

        class Counting(nn.Module):
            def forward(self, x):
                counts[solver] = counts.get(solver, 0) + len(x)
                return torch.sin(x @ basis) * torch.linspace(-0.95, 0.95, 10) @ basis.T

        fp.lipschitz_bound.register(Counting, lambda module: fp.LipschitzBound(0.95, 2.0))
        y = torch.randn(100, 10)
        for solver in SOLVERS[:2]:
            with torch.no_grad(), fp.no_logdet():
                fp.ResidualTransform(Counting(), solver=replace(solver, tol=1e-4)).inverse(y)
        assert 3 * counts[fp.Anderson()] < counts[fp.FixedPoint()]

    def test_bad_accelerated_steps_are_taken_back(self):
        """A kinked map leads Anderson astray; it never needs more than twice the certain number of plain steps."""
        evaluations = 0

        class Kinks(nn.Module):
            def forward(self, x):
                nonlocal evaluations
                evaluations += 1
                return 0.9 * (((40 * x) % 4) - 2).abs() / 40

        fp.lipschitz_bound.register(Kinks, lambda module: fp.LipschitzBound(0.9))
        y = torch.randn(2000, 1)
        with torch.no_grad(), fp.no_logdet():
            x = fp.ResidualTransform(Kinks(), solver=fp.Anderson(tol=1e-4)).inverse(y)[0]
            error = (x + Kinks()(x) - y).abs().max()
        assert float(error) <= 1e-4 * 1.9
        # |r| starts below 0.05 and has to come to 1e-4 (1 - L) / L: 80 plain steps of factor 0.9.
        assert evaluations <= 2 * 80


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

    def test_divergence_stops_at_once(self):
        with pytest.raises(fp.NotConverged, match=r"8 of 8 samples was not found in 2 steps"):
            fp.ResidualTransform(Growing(), solver=fp.FixedPoint()).inverse(1 + torch.rand(8, 2))

    @pytest.mark.parametrize("solver", [fp.FixedPoint(max_steps=3), fp.Anderson(max_steps=3)])
    def test_step_limit(self, solver):
        transform = residual(solver=solver)
        name = type(solver).__name__
        with pytest.raises(fp.NotConverged, match=rf"in 3 steps: worst residual .* raise {name}\(max_steps"):
            transform.inverse(torch.randn(5, 3))

    def test_one_row_that_is_not_finite_is_named(self):
        y = torch.randn(5, 3)
        y[3, 1] = math.nan
        with pytest.raises(fp.NonFiniteError, match=r"1 NaN or infinite value\(s\), the first at index \(3, 1\)"):
            residual().inverse(y)

    def test_step_limit_in_the_backward_pass(self):
        limits = iter([10_000, 1])
        transform = residual(solver=lambda *problem: fp.FixedPoint(max_steps=next(limits))(*problem))
        x = transform.inverse(torch.randn(5, 3))[0]
        with pytest.raises(fp.NotConverged, match="in 1 steps"):
            x.sum().backward()

    def test_weights_that_are_not_finite(self):
        transform = residual().eval()
        with torch.no_grad():
            transform.g.layers[1].weight[0, 0] = math.nan
        for direction in (transform, transform.inverse):
            with pytest.raises(fp.LipschitzError, match=r"bound nan .* its weights hold NaN"):
                direction(torch.randn(5, 3))

    @pytest.mark.parametrize("keywords", [{"tol": 0.0}, {"tol": -1.0}, {"max_steps": 0}])
    def test_bad_values(self, keywords):
        for make in (fp.FixedPoint, fp.Anderson):
            with pytest.raises(ValueError, match=make.__name__):
                make(**keywords)

    def test_bad_memory(self):
        with pytest.raises(ValueError, match=r"Anderson\(memory=...\) must be at least 1; got 0"):
            fp.Anderson(memory=0)

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_empty_batch(self, solver):
        x, ladj = residual(solver=solver).inverse(torch.empty(0, 3))
        assert x.shape == (0, 3)
        assert ladj.shape == (0,)


class TestDerivatives:
    """Finite differences need float64, whatever the dtype of the suite."""

    @pytest.fixture(params=[(fp.InfNorm(), solver) for solver in SOLVERS] + [(fp.Gram(), fp.Anderson())], ids=str)
    def transform(self, request):
        norm, solver = request.param
        return residual(context_features=2, norm=norm, solver=solver).double()

    def test_gradcheck_of_both_outputs(self, transform):
        y, context = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
        # Weights that are close to 0 initially move away from there, where the norm has a kink.
        parameters = [(p + 1e-3 * p.sign()).detach().requires_grad_() for p in transform.parameters()]
        names = [name for name, _ in transform.named_parameters()]

        def inverse(y, context, *values):
            swapped = dict(zip(names, values, strict=True))
            return torch.func.functional_call(
                fp.InverseTransform(transform), {f"transform.{k}": v for k, v in swapped.items()}, (y, context)
            )

        assert torch.autograd.gradcheck(inverse, (y.requires_grad_(), context.requires_grad_(), *parameters))

    def test_equals_the_unrolled_iteration(self, transform):
        y, context = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
        x = transform.inverse(y, context)[0]
        unrolled = y
        for _ in range(300):
            unrolled = y - transform.g(unrolled, context)
        weights = torch.randn_like(x)
        leaves = list(transform.parameters())
        implicit, explicit = (torch.autograd.grad((weights * z).sum(), leaves) for z in (x, unrolled))
        torch.testing.assert_close(implicit, explicit, atol=1e-12, rtol=1e-9)

    def test_tolerance_is_relative_to_the_gradient(self, transform):
        loose = fp.ResidualTransform(transform.g, solver=fp.FixedPoint(tol=1e-3))
        y, context = torch.randn(3, 3, dtype=torch.float64, requires_grad=True), torch.randn(3, 2, dtype=torch.float64)
        for scale in (1e-9, 1e9):
            (a,) = torch.autograd.grad(scale * loose.inverse(y, context)[0].sum(), y)
            (b,) = torch.autograd.grad(scale * transform.inverse(y, context)[0].sum(), y)
            assert float((a - b).abs().max()) <= 0.01 * scale

    @pytest.mark.parametrize(
        ("norm", "dual"), [(None, None), (1.0, math.inf), (2.0, 2.0), (4.0, 4 / 3), (math.inf, 1.0)]
    )
    def test_adjoint_contracts_in_the_dual_norm(self, norm, dual):
        assert fp.LipschitzBound(0.9, norm).dual() == fp.LipschitzBound(0.9, dual)
        if norm in (1.0, 2.0, math.inf):
            matrix = torch.randn(4, 4)
            a, b = torch.linalg.matrix_norm(matrix, norm), torch.linalg.matrix_norm(matrix.T, dual)
            torch.testing.assert_close(a, b)

    def test_a_second_derivative_raises(self):
        transform, y = residual(), torch.randn(3, 3, requires_grad=True)
        x = transform.inverse(y)[0]
        with pytest.raises(fp.SecondDerivativeError, match="differentiable once"):
            torch.autograd.grad(x.sum(), y, create_graph=True)

    def test_memory_does_not_grow_with_the_iterations(self):
        sizes = set()
        for tol in (1e-1, 1e-4):
            x = residual(solver=fp.FixedPoint(tol=tol)).inverse(torch.randn(3, 3))[0]
            seen, stack = set(), [x.grad_fn]
            while stack:
                node = stack.pop()
                if node is not None and node not in seen:
                    seen.add(node)
                    stack += [next_node for next_node, _ in node.next_functions]
            sizes.add(len(seen))
        assert len(sizes) == 1

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_gradients_that_are_not_finite_pass_through_their_own_row(self, value):
        y = torch.randn(3, 3, requires_grad=True)
        x = residual(bound=0.9).inverse(y)[0]
        weights = torch.ones(3, 3)
        weights[1, 0] = value
        (gradient,) = torch.autograd.grad(x, y, weights)
        assert gradient.isfinite().all(1).tolist() == [True, False, True]

    def test_frozen_parameters(self):
        transform = residual().requires_grad_(requires_grad=False)
        y = torch.randn(3, 3, requires_grad=True)
        transform.inverse(y)[0].sum().backward()
        assert y.grad is not None
        assert not transform.inverse(y.detach())[0].requires_grad


class TestPieces:
    """Without a graph, rows are evaluated chunk_size at a time."""

    @pytest.mark.parametrize("context", [None, torch.randn(7, 1, 2, device="cpu", dtype=torch.float64)])
    @pytest.mark.parametrize("logdet", [fp.ExactLogDet(), fp.Krylov(terms=fp.Truncated(3))])
    def test_pieces_give_what_the_whole_gives(self, context, logdet, eps):
        g = small_mlp(context_features=0 if context is None else 2)
        context = None if context is None else context.to(torch.empty(()))
        whole, pieces = (fp.ResidualTransform(g, logdet=logdet, chunk_size=size) for size in (1000, 4))
        x = torch.randn(7, 5, 3)
        with torch.no_grad():
            results = [[*t(x, context), *t.inverse(x, context)] for t in (whole, pieces)]
        for i, (a, b) in enumerate(zip(*results, strict=True)):
            assert a.shape == b.shape
            if logdet == fp.ExactLogDet() or i % 2 == 0:
                torch.testing.assert_close(a, b, atol=100 * eps, rtol=100 * eps)

    def test_sizes(self):
        sizes, transform = [], residual()
        transform.chunk_size = 4
        transform.logdet = lambda branch, x, noise: sizes.append(len(x)) or fp.ExactLogDet()(branch, x, noise)
        with torch.no_grad():
            transform(torch.randn(10, 3))
            assert sizes == [4, 4, 2]
            transform.inverse(torch.randn(2, 5, 3))
            assert sizes == 2 * [4, 4, 2]
        transform(torch.randn(10, 3))
        assert sizes[-1] == 10

    def test_pieces_do_not_share_their_noise(self):
        transform = residual(event=300).eval()
        transform.chunk_size = 1
        with torch.no_grad():
            ladj = transform(torch.ones(6, 300))[1]
        assert len(ladj.unique()) > 1

    def test_bad_size(self):
        with pytest.raises(ValueError, match=r"chunk_size=...\) must be at least 1; got 0"):
            fp.ResidualTransform(small_mlp(), chunk_size=0)


def test_small_branch_is_inverted_through_a_dropped_context():
    transform = fp.ResidualTransform(small_mlp())
    y = torch.randn(4, 3)
    assert torch.equal(transform.inverse(y, torch.randn(9))[0], transform.inverse(y)[0])
