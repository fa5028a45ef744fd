"""Norms of every kind: against brute force, from above, and differentiable."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn
from torch.utils import checkpoint

import flowplug as fp
from flowplug import OperatorNorm
from flowplug.lipschitz.norms._spectral import symbol

EXACT = [fp.InfNorm(), fp.OneNorm(), fp.SVD()]
NORMS = [
    *EXACT,
    fp.Gram(),
    fp.Gram(iterations=1),
    fp.Gram(iterations=3),
    fp.PowerIteration(tol=1e-6, max_iterations=5000),
    fp.InducedNorm(1.3, 1.8),
    fp.InducedNorm(3.0, 1.5),
    fp.InducedNorm(1, 1.5),
    fp.InducedNorm(1.7, math.inf),
    fp.InducedNorm(2, 2),
    fp.LearnedOrder(),
]


def signs(count):
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=count))).T


def induced(weight, p, q, directions=20_000):
    """The norm from p to q: exact at the edges of the square of orders, elsewhere the largest ratio found at random."""
    if p == 1:
        return torch.linalg.vector_norm(weight, q, dim=0).max()
    if math.isinf(q):
        dual = 1.0 if math.isinf(p) else p / (p - 1)
        return torch.linalg.vector_norm(weight, dual, dim=1).max()
    if p == q == 2:
        return torch.linalg.svdvals(weight)[0]
    if math.isinf(p):  # convex: attained at a corner of the cube
        return torch.linalg.vector_norm(weight @ signs(weight.shape[1]), q, dim=0).max()
    if q == 1:
        return torch.linalg.vector_norm(weight.T @ signs(weight.shape[0]), p / (p - 1), dim=0).max()
    # Heavy-tailed and light-tailed directions: maxima lie near few coordinates or near the diagonals.
    x = torch.randn(weight.shape[1], directions)
    x = torch.sign(x) * x.abs() ** (3 * torch.rand(directions))
    return (torch.linalg.vector_norm(weight @ x, q, dim=0) / torch.linalg.vector_norm(x, p, dim=0)).max()


def weights_in_use(module):
    return module.bounded_weights() if isinstance(module, fp.LipschitzMLP) else [module.bounded_weight()]


@dataclasses.dataclass(frozen=True)
class Halved(fp.Gram):
    def project(self, weight, bound):
        return super().project(weight, bound) / 2


@dataclasses.dataclass  # not frozen, so without a hash
class Frobenius(OperatorNorm):
    def orders(self):
        return 2.0, 2.0

    def measure(self, weight):
        return torch.linalg.matrix_norm(weight)


class Lower(fp.LipschitzLinear):
    def bounded_weight(self):
        return super().bounded_weight().tril()


class TestInduced:
    def test_bounds_and_estimates_enclose_brute_force_on_200_matrices(self, eps):
        orders = [1.0, 1.2, 1.5, 2.0, 2.5, 4.0, math.inf]
        closed = hit = known = 0
        for _ in range(200):
            p, q = (orders[int(i)] for i in torch.randint(len(orders), (2,)))
            m, n = (int(i) for i in torch.randint(1, 8, (2,)))
            weight = torch.randn(m, n) ** (1 + 2 * int(torch.randint(2, ())))
            norm = fp.InducedNorm(p, q)
            upper, lower, truth = float(norm.measure(weight)), float(norm.estimate(weight)), induced(weight, p, q)
            assert truth <= upper * (1 + 1000 * eps)
            assert lower <= upper * (1 + 1000 * eps)
            if p == 1 or math.isinf(q) or p == q == 2:
                closed += 1
                assert abs(upper / truth - 1) <= 1000 * eps
            if p == 1 or q == 1 or math.isinf(p) or math.isinf(q) or p == q == 2:
                assert lower <= truth * (1 + 1000 * eps)
                known, hit = known + 1, hit + int(lower >= 0.999 * truth)
            else:
                assert lower >= truth * 0.999
        assert closed > 40
        assert hit >= 0.97 * known

    @pytest.mark.parametrize(("p", "q"), [(1.3, 1.8), (1.5, 1.5), (1.8, 3.0), (2.5, 4.0), (4.0, 1.3), (3.0, 2.2)])
    def test_the_bound_is_not_loose(self, p, q):
        norm = fp.InducedNorm(p, q)
        ratios = [float(norm.measure(weight) / norm.estimate(weight)) for weight in torch.randn(50, 16, 16)]
        assert min(ratios) >= 1
        assert max(ratios) < 1.5

    def test_the_bound_is_exact_for_a_single_entry(self, eps):
        weight = torch.zeros(4, 5)
        weight[2, 1] = -3.0
        for p, q in [(1.3, 1.3), (1.5, 2.2), (2.5, 3.0), (2.5, 2.5)]:
            assert abs(float(fp.InducedNorm(p, q).measure(weight)) / 3 - 1) <= 0.02

    def test_the_power_method_is_power_iteration_at_2(self, eps):
        weight = torch.randn(6, 5)
        estimate = fp.InducedNorm(2, 2).estimate(weight, rtol=1e-12)
        torch.testing.assert_close(estimate, torch.linalg.matrix_norm(weight, 2), rtol=max(1e-6, 50 * eps), atol=0)

    def test_only_matrices_are_estimated(self):
        with pytest.raises(fp.ShapeError, match=r"expects a matrix; got shape \(2, 3, 4\)"):
            fp.InducedNorm(2, 1.5).estimate(torch.zeros(2, 3, 4))

    @pytest.mark.parametrize("orders", [(0.5, 2.0), (2.0, 0.0), (math.nan, 2.0)])
    def test_bad_orders(self, orders):
        with pytest.raises(fp.LipschitzError, match=r"orders in \[1, inf\]"):
            fp.InducedNorm(*orders)

    @pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (2.0, 2.0), (2.0, 1.5), (2.0, math.inf), (math.nan, 2.0)])
    def test_bad_ranges(self, low, high):
        with pytest.raises(fp.LipschitzError, match="1 <= low < high < inf"):
            fp.LearnedOrder(low, high)


class TestEveryNorm:
    @pytest.mark.parametrize("norm", EXACT, ids=str)
    @pytest.mark.parametrize("shape", [(1, 1), (5, 3), (3, 5), (64, 64)])
    @pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
    def test_exact_where_it_says_so(self, norm, shape, scale, eps):
        weight = scale * torch.randn(shape)
        truth = torch.linalg.matrix_norm(weight, norm.orders()[0])
        torch.testing.assert_close(norm.measure(weight), truth, rtol=100 * eps, atol=0)

    @pytest.mark.parametrize("norm", NORMS, ids=str)
    def test_projects_only_what_is_too_large(self, norm, eps):
        weight = torch.randn(6, 5)
        small = 0.1 * weight / norm.measure(weight)
        assert torch.equal(norm.project(small, 0.9), small)
        assert 0.88 < float(norm.measure(norm.project(50 * weight, 0.9))) <= 0.9 * (1 + 1000 * eps)

    @pytest.mark.parametrize("norm", NORMS, ids=str)
    @pytest.mark.parametrize("scale", [0.01, 10.0])
    def test_gradcheck(self, norm, scale):
        layer = fp.LipschitzLinear(3, 4, bound=0.9, norm=norm).double()
        names = [name for name, _ in layer.named_parameters() if name != "bias"]
        with torch.no_grad():
            layer.weight.copy_(scale * torch.randn(4, 3))
        leaves = [layer.get_parameter(name) for name in names]

        def weight(*values):
            return torch.func.functional_call(
                Bounded(layer), {f"layer.{n}": v for n, v in zip(names, values, strict=True)}, ()
            )

        assert torch.autograd.gradcheck(weight, leaves)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("norm", [*NORMS, fp.PathNorm()], ids=str)
    def test_autocast_changes_no_bound(self, norm, dtype):
        options = {"bound": 0.9, "norm": norm, "dtype": torch.float32}
        whole = isinstance(norm, fp.NetworkNorm)
        modules = [] if whole else [fp.LipschitzLinear(32, 32, **options)]
        if whole or norm.orders()[0] == norm.orders()[1]:
            modules.append(fp.LipschitzMLP(8, (32, 32), bound=0.9, norm=norm).float())
        if not (whole or isinstance(norm, fp.LearnedOrder | fp.InducedNorm)):
            modules.append(fp.LipschitzConv2d(3, 4, 3, **options))
        for module in modules:
            module.eval()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(5)
            bounds = []
            for enabled in (False, True):
                with torch.autocast("cpu", dtype, enabled=enabled):
                    bounds.append((fp.lipschitz_bound(module), weights_in_use(module)))
            assert float(bounds[0][0]) == float(bounds[1][0])
            assert all(map(torch.equal, bounds[0][1], bounds[1][1]))

    @pytest.mark.parametrize("norm", NORMS, ids=str)
    def test_zero_weights(self, norm):
        layer = fp.LipschitzLinear(3, 4, norm=norm)
        nn.init.zeros_(layer.weight)
        for _ in range(2):
            weight = layer.bounded_weight()
            assert not weight.any()
            weight.sum().backward()
            assert all(bool(p.grad.isfinite().all()) for p in layer.parameters() if p.grad is not None)
        with torch.no_grad():
            layer.weight.fill_(10.0)
        layer.bounded_weight().sum().backward()
        assert float(fp.lipschitz_bound(layer)) <= 0.98

    @pytest.mark.parametrize("norm", NORMS, ids=str)
    def test_repr_names_the_norm(self, norm):
        assert type(norm).__name__ in repr(fp.LipschitzLinear(3, 4, norm=norm)) or isinstance(norm, fp.LearnedOrder)


class Bounded(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self):
        return self.layer.bounded_weight()


# Weights whose largest singular vector is orthogonal to coordinates, to constants, or one of many.
STRUCTURED = {
    "largest column elsewhere": lambda n: torch.block_diag(2 * torch.eye(n // 2), torch.full((n // 2, n // 2), 6 / n)),
    "alternating signs": lambda n: torch.ones(n, 1) * (-1.0) ** torch.arange(n) + 0.1 * torch.eye(n),
    "circulant": lambda n: torch.cos(6 * math.pi * (torch.arange(n)[:, None] - torch.arange(n)) / n),
    "orthogonal": lambda n: nn.init.orthogonal_(torch.empty(n, n)),
    "rank one": lambda n: torch.outer(torch.randn(n), torch.randn(n)),
    "one entry": lambda n: 3.0 * (torch.arange(n * n) == 5).view(n, n),
}


class TestSpectral:
    @pytest.mark.parametrize("count", [8, 64])
    @pytest.mark.parametrize("name", STRUCTURED)
    def test_gradient_of_the_largest_singular_value(self, name, count, eps):
        weight = STRUCTURED[name](count).requires_grad_()
        value = fp.SVD().measure(weight)
        (gradient,) = torch.autograd.grad(value, weight)
        truth = torch.linalg.svdvals(weight.detach())
        tolerance = 20 * count * eps  # cuSOLVER's rounding grows with the size
        assert abs(float(value.detach() / truth[0]) - 1) <= tolerance
        # A subgradient: of norm 1 in the dual, and its product with the weight is the norm.
        assert abs(float((gradient * weight.detach()).sum() / truth[0]) - 1) <= tolerance
        assert abs(float(torch.linalg.svdvals(gradient).sum()) - 1) <= tolerance
        if truth[1] < 0.99 * truth[0]:
            u, _, v = torch.linalg.svd(weight.detach())
            torch.testing.assert_close(gradient, torch.outer(u[:, 0], v[0]), atol=1e4 * eps, rtol=0)

    @pytest.mark.parametrize("iterations", range(1, 9))
    @pytest.mark.parametrize("shape", [(5, 5), (7, 4), (4, 7), (1, 6)])
    def test_gram_is_a_schatten_norm(self, iterations, shape, eps):
        weight = torch.randn(shape, requires_grad=True)
        values = torch.linalg.svdvals(weight.double())
        order = 2 ** (iterations + 1) + 2
        expected = values[0] * (values / values[0]).pow(order).sum() ** (1 / order)
        found = fp.Gram(iterations).measure(weight)
        assert abs(float((found / expected).detach()) - 1) <= 20 * eps
        gradients = [torch.autograd.grad(value, weight)[0] for value in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=0, atol=1000 * eps)

    @pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e-18, 1.0, 1e18, 1e30])
    @pytest.mark.parametrize("norm", [fp.Gram(), fp.SVD()], ids=str)
    def test_no_overflow(self, norm, scale, eps):
        weight = torch.full((512, 512), scale, requires_grad=True)
        value = norm.measure(weight)
        (gradient,) = torch.autograd.grad(value, weight)
        assert abs(float(value.detach()) / (512 * scale) - 1) <= 100 * eps
        torch.testing.assert_close(gradient, torch.full((512, 512), 1 / 512), rtol=1000 * eps, atol=0)

    @pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e30])
    @pytest.mark.parametrize("norm", [fp.Gram(), fp.SVD()], ids=str)
    def test_no_overflow_of_equal_values(self, norm, scale, eps):
        weight = (scale * torch.eye(1024)).requires_grad_()
        value = norm.measure(weight)
        (gradient,) = torch.autograd.grad(value, weight)
        assert 1 - 100 * eps <= float(value.detach()) / scale <= 1024 ** (1 / 258) * (1 + 100 * eps)
        assert abs(float((gradient * weight.detach()).sum() / value.detach()) - 1) <= 100 * eps

    @pytest.mark.parametrize("norm", [*map(fp.Gram, range(1, 9)), fp.SVD()], ids=str)
    @pytest.mark.parametrize("shape", [(3, 4, 3), (4, 2, 3, 3)], ids=str)
    def test_convolutions_have_the_largest_norm_of_all_frequencies(self, norm, shape, eps):
        weight = torch.randn(shape)
        stack, slack = symbol(weight)
        largest = max(float(norm.measure(matrix)) for matrix in stack)
        assert abs(float(norm.measure(weight)) / (slack * largest) - 1) <= 100 * eps

    @pytest.mark.parametrize("norm", [fp.Gram(), fp.SVD()], ids=str)
    def test_ensembles(self, norm, eps):
        weights = torch.randn(3, 5, 4)
        gradients, values = torch.func.vmap(torch.func.grad_and_value(norm.measure))(weights)
        for weight, gradient, value in zip(weights, gradients, values, strict=True):
            expected, single = torch.func.grad_and_value(norm.measure)(weight)
            torch.testing.assert_close(value, single, rtol=100 * eps, atol=0)
            torch.testing.assert_close(gradient, expected, rtol=0, atol=1e4 * eps)

    @pytest.mark.parametrize("shape", [(4, 3), (3, 5), (5, 5), (2, 3, 3), (2, 2, 3, 3)], ids=str)
    @pytest.mark.parametrize("norm", [fp.Gram(), fp.Gram(1), fp.SVD()], ids=str)
    def test_second_derivatives(self, norm, shape):
        weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradgradcheck(norm.measure, weight)
        hessian = torch.autograd.functional.hessian(norm.measure, weight.detach())
        torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(norm.measure))(weight.detach()), hessian)

    @pytest.mark.parametrize("norm", [fp.Gram(), fp.SVD()], ids=str)
    @pytest.mark.parametrize("spectrum", [(0, 0, 0), (1, 0, 0), (3, 1, 1), (1, 1, 1)], ids=str)
    def test_second_derivatives_need_no_distinct_values(self, norm, spectrum):
        weight = torch.diag(torch.tensor(spectrum, dtype=torch.float64))
        hessian = torch.autograd.functional.hessian(lambda w: norm.project(w, 0.9).square().sum(), weight)
        assert bool(hessian.isfinite().all())
        if sum(spectrum) == 0:
            assert torch.equal(hessian, 2 * torch.eye(9, dtype=torch.float64).reshape(3, 3, 3, 3))
        if spectrum[0] > spectrum[1]:
            gradient, step = torch.func.grad(norm.measure), 1e-5 * torch.randn_like(weight)
            moved = (torch.autograd.functional.hessian(norm.measure, weight) * step).sum((2, 3))
            torch.testing.assert_close(gradient(weight + step), gradient(weight) + moved, atol=1e-9, rtol=0)

    @pytest.mark.parametrize("norm", [fp.Gram(), fp.SVD()], ids=str)
    def test_one_gradient_for_all_ways_to_take_it(self, norm, eps):
        for weight in (torch.eye(5), torch.zeros(3, 5), nn.init.orthogonal_(torch.empty(6, 4)), torch.randn(4, 6)):
            leaf = weight.clone().requires_grad_()
            (expected,) = torch.autograd.grad(norm.measure(leaf), leaf)
            found = torch.func.grad(norm.measure)(weight)
            torch.testing.assert_close(found, expected, rtol=0, atol=1000 * eps)

    # In torch 2.4 the checkpoint itself calls torch.cpu.amp.autocast, which torch 2.4 deprecates.
    @pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.autocast:FutureWarning")
    @pytest.mark.parametrize("norm", [fp.Gram(), fp.SVD(), fp.PathNorm()], ids=str)
    def test_checkpointing_and_meta_tensors(self, norm):
        g, x = fp.LipschitzMLP(3, (4, 4), norm=norm), torch.randn(2, 3, requires_grad=True)
        checkpoint.checkpoint(g, x, use_reentrant=False).sum().backward()
        found = g.layers[0].weight.grad.clone()
        g.zero_grad()
        g(x).sum().backward()
        assert torch.equal(found, g.layers[0].weight.grad)
        assert g.to("meta")(x.to("meta")).shape == x.shape

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("norm", [fp.Gram(), fp.SVD()], ids=str)
    def test_weights_of_half_precision(self, norm, dtype):
        weight = torch.nn.init.orthogonal_(torch.empty(128, 128, dtype=torch.float32)).to(dtype)
        over, rounding = 128 ** (1 / 258) if norm == fp.Gram() else 1, torch.finfo(dtype).eps
        assert 1 - rounding <= float(norm.measure(weight)) <= over * (1 + rounding)
        for projected in (norm.project(weight, 0.5), *norm.project_all([weight, weight.T], 0.5)):
            assert projected.dtype == dtype
            assert float(torch.linalg.matrix_norm(projected.float(), 2)) <= 0.5 * (1 + torch.finfo(dtype).eps)

    @pytest.mark.usefixtures("users_defaults")
    def test_layers_on_several_devices(self):
        g = fp.LipschitzMLP(3, (4, 4), norm=fp.Gram())
        g.layers[1].to("meta")
        assert [weight.device.type for weight in g.bounded_weights()] == ["cpu", "meta", "cpu"]

    def test_what_a_subclass_replaces_holds_in_networks(self):
        g = fp.LipschitzMLP(3, (4,), norm=Halved(), bound=0.9)
        for layer, weight in zip(g.layers, g.bounded_weights(), strict=True):
            assert torch.equal(weight, layer.bounded_weight())
        g = fp.LipschitzMLP(3, (4,), norm=Frobenius())
        assert all(
            abs(float(torch.linalg.matrix_norm(w.detach())) - g.layers[0].bound) < 1e-6 for w in g.bounded_weights()
        )
        g = fp.LipschitzMLP(3, (3,), norm=fp.Gram())
        g.layers[0] = Lower(3, 3, bound=g.layers[1].bound, norm=g.layers[1].norm)
        assert torch.equal(g.bounded_weights()[0], g.layers[0].bounded_weight())

    @pytest.mark.parametrize("norm", [fp.Gram(), fp.SVD()], ids=str)
    def test_together_as_one_by_one(self, norm, eps):
        shapes = [(5, 9), (9, 5), (9, 9), (5, 9), (5, 9, 1)]
        for count in (4, 5):
            weights = [torch.randn(shape, requires_grad=True) for shape in shapes[:count]]
            seeds = [torch.randn_like(weight) for weight in weights]
            together = norm.project_all(weights, 0.7)
            apart = [norm.project(weight, 0.7) for weight in weights]
            for found, expected in zip(together, apart, strict=True):
                torch.testing.assert_close(found, expected, rtol=100 * eps, atol=0)
            gradients = (torch.autograd.grad(projected, weights, seeds) for projected in (together, apart))
            for found, expected in zip(*gradients, strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e4 * eps)


class TestPowerIteration:
    def test_only_training_passes_with_gradients_refresh_the_buffer(self):
        layer = fp.LipschitzLinear(8, 8, norm=fp.PowerIteration(tol=1e-2))
        layer.weight = nn.Parameter(torch.randn(8, 8))
        before = layer.norm.u.clone()
        with torch.no_grad():
            layer(torch.randn(2, 8))
        layer.eval()(torch.randn(2, 8))
        assert torch.equal(layer.norm.u, before)
        layer.train()(torch.randn(2, 8))
        assert not torch.equal(layer.norm.u, before)

    @pytest.mark.parametrize("tol", [0.1, 0.01, 0.001])
    def test_reaches_its_tolerance_whatever_the_spectrum(self, tol):
        rotation, _ = torch.linalg.qr(torch.randn(64, 64))
        for spectrum in (torch.ones(64), torch.linspace(0, 1, 64), torch.linspace(0.9, 1, 64), torch.rand(64) ** 8):
            weight = 5 * rotation @ torch.diag(spectrum / spectrum.max()) @ rotation.T
            norm = fp.PowerIteration(tol=tol, max_iterations=10_000)
            error = float(torch.linalg.matrix_norm(norm.project(weight, 0.9), 2)) / 0.9 - 1
            assert -1e-5 <= error <= tol

    def test_stops_sooner_with_a_larger_tolerance_and_goes_on_from_there(self):
        weight = torch.diag(torch.linspace(0.9, 1.0, 32)) + 0.01 * torch.randn(32, 32)
        layer = fp.LipschitzLinear(32, 32, bound=0.9, norm=fp.PowerIteration(tol=0.1))
        layer.weight = nn.Parameter(5 * weight)
        errors = [float(torch.linalg.matrix_norm(layer.bounded_weight().detach(), 2)) / 0.9 - 1 for _ in range(200)]
        assert errors[0] > 1e-4
        assert errors[-1] < min(errors[0] / 2, 1e-3)

    def test_a_warm_start_does_not_hide_a_new_direction(self):
        layer = fp.LipschitzLinear(16, 16, bound=0.9, norm=fp.PowerIteration())
        layer.weight = nn.Parameter(torch.diag(torch.linspace(5, 0.1, 16)))
        layer.bounded_weight()
        with torch.no_grad():
            layer.weight[-1, -1] = 10
        assert float(torch.linalg.matrix_norm(layer.bounded_weight().detach(), 2)) <= 0.9 * 1.005

    def test_stops_at_max_iterations(self):
        weight = torch.randn(8, 8)
        one, many = (fp.PowerIteration(tol=1e-6, max_iterations=n).project(weight, 0.1) for n in (1, 2000))
        assert float(torch.linalg.matrix_norm(many, 2)) < float(torch.linalg.matrix_norm(one, 2))

    def test_bad_settings(self):
        with pytest.raises(ValueError, match=r"tol=.*positive; got 0"):
            fp.PowerIteration(tol=0)
        with pytest.raises(ValueError, match=r"max_iterations=.*at least 1; got 0"):
            fp.PowerIteration(max_iterations=0)


class TestTying:
    def test_orders_are_tied_from_layer_to_layer_and_back(self):
        norms = fp.LearnedOrder().chain(3)
        assert [norm.ends[1] for norm in norms] == [norms[1].ends[0], norms[2].ends[0], norms[0].ends[0]]
        assert len({norm.ends[0] for norm in norms}) == 3
        assert len({order for norm in fp.LearnedOrder(shared=True).chain(3) for order in norm.ends}) == 1

    @pytest.mark.parametrize(("norm", "count"), [(fp.LearnedOrder(), 3), (fp.LearnedOrder(shared=True), 1)])
    def test_every_order_is_registered_once(self, norm, count):
        g = fp.LipschitzMLP(3, (8, 8), norm=norm, activation=nn.Tanh)
        assert len([name for name in g.state_dict() if "order" in name]) == count
        assert len([name for name, _ in g.named_parameters(remove_duplicate=False) if "order" in name]) == count

    def test_orders_that_are_not_tied_are_refused(self):
        layers = (fp.LipschitzLinear(3, 3, norm=fp.LearnedOrder()) for _ in range(2))
        with pytest.raises(fp.LipschitzError, match="different norms"):
            fp.ResidualTransform(nn.Sequential(*layers))

    def test_orders_learn_from_the_first_step(self):
        for hidden in ((8,), (8, 8)):
            g = fp.LipschitzMLP(3, hidden, norm=fp.LearnedOrder(), activation=nn.Tanh)
            transform = fp.ResidualTransform(g)
            y, ladj = transform(torch.randn(16, 3))
            (y.square().sum() - ladj.sum()).backward()
            orders = {layer.norm.ends[0] for layer in g.layers}
            gradients = torch.stack([order.raw.grad for order in orders])
            assert bool(gradients.isfinite().all())
            assert bool(gradients.any())

    def test_the_network_ends_in_the_norm_it_starts_from(self):
        there, back = fp.InducedNorm(1.5, 3), fp.InducedNorm(3, 1.5)
        bound = fp.lipschitz_bound(fp.LipschitzMLP(3, (8,), bound=0.9, norm=(there, back)))
        assert bound.domain == 1.5
        assert bound.codomain is None
        with pytest.raises(
            fp.LipschitzError, match=r"from the 1.5-norm to the 3-norm.*ends in the norm it starts from"
        ):
            fp.LipschitzMLP(3, (8,), norm=(there, fp.InducedNorm(3, 3)))
        with pytest.raises(fp.LipschitzError, match="different norms"):
            fp.LipschitzMLP(3, (8,), norm=there)
        with pytest.raises(fp.LipschitzError, match="2 layers and needs one norm for all, or as many; got 3"):
            fp.LipschitzMLP(3, (8,), norm=(there, back, there))

    def test_a_chain_of_ones_own_layers(self):
        first, second = fp.LearnedOrder().chain(2)
        g = nn.Sequential(fp.LipschitzLinear(3, 8, norm=first), nn.Tanh(), fp.LipschitzLinear(8, 3, norm=second))
        with torch.no_grad():
            first.ends[0].raw.fill_(1.0)
        assert fp.lipschitz_bound(g).domain == pytest.approx(1.5 + torch.sigmoid(torch.ones(())).item())
        swapped = nn.Sequential(g[2], nn.Tanh(), g[2])
        with pytest.raises(fp.LipschitzError, match="different norms"):
            fp.lipschitz_bound(swapped)

    def test_bounds_from_one_norm_to_another_multiply_in_order(self):
        layers = [
            fp.LipschitzLinear(3, 4, norm=fp.InducedNorm(1, 2)),
            fp.LipschitzLinear(4, 3, norm=fp.InducedNorm(2, 3)),
        ]
        bound = fp.lipschitz_bound(nn.Sequential(*layers))
        product = math.prod(float(fp.lipschitz_bound(layer)) for layer in layers)
        assert (float(bound), bound.domain, bound.codomain) == (pytest.approx(product), 1, 3)
        assert "from the 1-norm to the 3-norm" in str(bound)
        with pytest.raises(fp.LipschitzError, match="different norms"):
            fp.lipschitz_bound(nn.Sequential(*reversed(layers)))
