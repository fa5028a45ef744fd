"""Laws of every norm of a layer: from above, close, differentiable, the same under autocast."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import flowplug as fp
from helpers import true_norm

TWO = [fp.InfNorm(), fp.Gram()]
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


def weights_in_use(module):
    return module.bounded_weights() if isinstance(module, fp.LipschitzMLP) else [module.bounded_weight()]


class Bounded(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self):
        return self.layer.bounded_weight()


class TestAgainstTheTrueNorm:
    @pytest.mark.parametrize("norm", TWO)
    @pytest.mark.parametrize("shape", [(1, 1), (5, 3), (3, 5), (64, 64), (128, 7)])
    @pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
    def test_measures_from_above_and_closely(self, norm, shape, scale, eps):
        weight = scale * torch.randn(shape)
        measured, truth = float(norm.measure(weight)), float(true_norm(weight, norm))
        loose = 1.0 if norm == fp.InfNorm() else min(shape) ** (1 / 2 ** (norm.iterations + 1))
        assert truth * (1 - 100 * eps) <= measured <= truth * loose * (1 + 100 * eps)

    @pytest.mark.parametrize("norm", TWO)
    def test_projects_only_what_is_too_large(self, norm, eps):
        weight = torch.randn(6, 6)
        small = 0.1 * weight / true_norm(weight, norm)
        assert torch.equal(norm.project(small, 0.9), small)
        assert 0.88 < float(true_norm(norm.project(50 * weight, 0.9), norm)) <= 0.9 * (1 + 10 * eps)

    @pytest.mark.parametrize("norm", TWO)
    def test_zero_weights(self, norm):
        weight = torch.zeros(3, 4, requires_grad=True)
        projected = norm.project(weight, 0.9)
        assert not projected.any()
        (gradient,) = torch.autograd.grad(projected.sum(), weight)
        assert bool(gradient.isfinite().all())

    @pytest.mark.parametrize("norm", TWO)
    @pytest.mark.parametrize("scale", [0.01, 10.0])
    def test_gradcheck(self, norm, scale):
        weight = (scale * torch.randn(4, 3, dtype=torch.float64)).requires_grad_()
        assert torch.autograd.gradcheck(lambda w: norm.project(w, 0.9), (weight,))


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


@dataclasses.dataclass(frozen=True)
class Halved(fp.Gram):
    def project(self, weight, bound):
        return super().project(weight, bound) / 2


@dataclasses.dataclass  # not frozen, so without a hash
class Frobenius(fp.OperatorNorm):
    def orders(self):
        return 2.0, 2.0

    def measure(self, weight):
        return torch.linalg.matrix_norm(weight)


class Lower(fp.LipschitzLinear):
    def bounded_weight(self):
        return super().bounded_weight().tril()


def test_what_a_subclass_replaces_holds_in_networks():
    g = fp.LipschitzMLP(3, (4,), norm=Halved(), bound=0.9)
    for layer, weight in zip(g.layers, g.bounded_weights(), strict=True):
        assert torch.equal(weight, layer.bounded_weight())
    g = fp.LipschitzMLP(3, (4,), norm=Frobenius())
    assert all(abs(float(torch.linalg.matrix_norm(w.detach())) - g.layers[0].bound) < 1e-6 for w in g.bounded_weights())
    g = fp.LipschitzMLP(3, (3,), norm=fp.Gram())
    g.layers[0] = Lower(3, 3, bound=g.layers[1].bound, norm=g.layers[1].norm)
    assert torch.equal(g.bounded_weights()[0], g.layers[0].bounded_weight())
