"""Weights of any scale and in half precision: the norm is right, and the projected weight within the bound."""

import math

import pytest
import torch
from torch import nn

import flowplug as fp

NORMS = [
    *(fp.InfNorm(), fp.OneNorm(), fp.Gram(), fp.SVD(), fp.PowerIteration(), fp.LearnedOrder()),
    *(fp.InducedNorm(1.5, 1.5), fp.InducedNorm(1, 2), fp.InducedNorm(math.inf, 2), fp.InducedNorm(3, math.inf)),
]


def kernels(norm):
    p, q = norm.orders()
    return [(), (3,), (3, 3)] if p == q else [()]


@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-20, 1e-10, 1.0, 1e10, 1e18, 1e25, 1e35])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_scale(norm, scale, dtype):
    for kernel in kernels(norm):
        weight = (torch.randn(5, 4, *kernel) * scale).to(dtype)
        exact = weight.double()
        value = float(norm.measure(weight))
        assert value == pytest.approx(float(norm.measure(exact / scale)) * scale, rel=1e-4)
        weight.requires_grad_()
        projected = norm.project(weight, 0.9)
        assert projected.dtype == dtype
        fits = 1.006 if isinstance(norm, fp.PowerIteration) else 1.0001
        assert float(norm.measure(projected.detach().double())) <= 0.9 * fits * (1 + 2 * torch.finfo(dtype).eps)
        (gradient,) = torch.autograd.grad(projected.sum(), weight)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", [*NORMS[:5], NORMS[6], fp.PathNorm()], ids=str)  # orders have few digits too
def test_models_in_half_precision_are_certified_in_single(norm, dtype):
    g = fp.LipschitzMLP(3, (32, 32), norm=norm).to(dtype)
    weights = [weight.detach() for weight in g.bounded_weights()]
    wanted = g.double().certify([weight.double() for weight in weights])
    assert float(g.to(dtype).certify(weights)) == pytest.approx(float(wanted), rel=1e-3)
    assert all(weight.dtype == dtype for weight in weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("module", [nn.Linear(5, 4), nn.Conv1d(2, 3, 3), nn.Conv2d(2, 3, 3)], ids=str)
def test_torchs_layers_in_half_precision(module, dtype):
    found = float(fp.lipschitz_bound(module.to(dtype)))
    assert found == pytest.approx(float(fp.lipschitz_bound(module.double())), rel=1e-5)


@pytest.mark.parametrize("norm", [*NORMS[:7], fp.PathNorm()], ids=str)
def test_certificates_are_the_same_under_autocast(norm, users_defaults):
    g = fp.LipschitzMLP(3, (32, 32), norm=norm).eval()
    transform = fp.ResidualTransform(g)
    plain = [float(fp.lipschitz_bound(g)), float(fp.Branch.of(g, None).lipschitz_bound()), float(transform.lipschitz)]
    with torch.autocast("cpu", torch.bfloat16):
        cast = [
            float(fp.lipschitz_bound(g)),
            float(fp.Branch.of(g, None).lipschitz_bound()),
            float(transform.lipschitz),
        ]
    assert cast == plain


def test_the_rules_and_norms_of_users_run_outside_autocast(users_defaults):
    class Frobenius(fp.OperatorNorm):
        def orders(self):
            return 2.0, 2.0

        def measure(self, weight):
            return (weight.flatten()[None] @ weight.flatten()).sqrt().squeeze()  # a product, which autocast lowers

    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(0.1 * torch.randn(3, 3))

        def forward(self, x):
            return x @ self.weight.T

    @fp.lipschitz_bound.register
    def _(module: Mine):
        return fp.LipschitzBound(Frobenius().measure(module.weight), 2.0)

    branches = [Mine(), nn.Sequential(fp.LipschitzLinear(3, 3, norm=Frobenius())), fp.LipschitzMLP(3, norm=Frobenius())]
    for g in branches:
        plain = float(fp.lipschitz_bound(g)), float(fp.Branch.of(g, None).lipschitz_bound())
        with torch.autocast("cpu", torch.bfloat16):
            assert (float(fp.lipschitz_bound(g)), float(fp.Branch.of(g, None).lipschitz_bound())) == plain
