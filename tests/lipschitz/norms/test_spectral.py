"""The 2-norm, by Gram iteration or by singular values: no overflow, convolutions, second derivatives, ensembles."""

import pytest
import torch
from torch import nn
from torch.utils import checkpoint

import flowplug as fp
from flowplug.lipschitz.norms._spectral import symbol


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e-18, 1.0, 1e18, 1e30])
@pytest.mark.parametrize("norm", [fp.Gram(), fp.SVD()], ids=str)
def test_no_overflow(norm, scale, eps):
    weight = torch.full((512, 512), scale, requires_grad=True)
    value = norm.measure(weight)
    (gradient,) = torch.autograd.grad(value, weight)
    assert abs(float(value.detach()) / (512 * scale) - 1) <= 100 * eps
    torch.testing.assert_close(gradient, torch.full((512, 512), 1 / 512), rtol=1000 * eps, atol=0)


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e30])
@pytest.mark.parametrize("norm", [fp.Gram(), fp.SVD()], ids=str)
def test_no_overflow_of_equal_values(norm, scale, eps):
    weight = (scale * torch.eye(1024)).requires_grad_()
    value = norm.measure(weight)
    (gradient,) = torch.autograd.grad(value, weight)
    assert 1 - 100 * eps <= float(value.detach()) / scale <= 1024 ** (1 / 258) * (1 + 100 * eps)
    assert abs(float((gradient * weight.detach()).sum() / value.detach()) - 1) <= 100 * eps


@pytest.mark.parametrize("norm", [*map(fp.Gram, range(1, 9)), fp.SVD()], ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 3), (4, 2, 3, 3)], ids=str)
def test_convolutions_have_the_largest_norm_of_all_frequencies(norm, shape, eps):
    weight = torch.randn(shape)
    stack, slack = symbol(weight)
    largest = max(float(norm.measure(matrix)) for matrix in stack)
    assert abs(float(norm.measure(weight)) / (slack * largest) - 1) <= 100 * eps


@pytest.mark.parametrize("norm", [fp.Gram(), fp.SVD()], ids=str)
def test_ensembles(norm, eps):
    weights = torch.randn(3, 5, 4)
    gradients, values = torch.func.vmap(torch.func.grad_and_value(norm.measure))(weights)
    for weight, gradient, value in zip(weights, gradients, values, strict=True):
        expected, single = torch.func.grad_and_value(norm.measure)(weight)
        torch.testing.assert_close(value, single, rtol=100 * eps, atol=0)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e4 * eps)


@pytest.mark.parametrize("shape", [(4, 3), (3, 5), (5, 5), (2, 3, 3), (2, 2, 3, 3)], ids=str)
@pytest.mark.parametrize("norm", [fp.Gram(), fp.Gram(1), fp.SVD()], ids=str)
def test_second_derivatives(norm, shape):
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(norm.measure, weight)
    hessian = torch.autograd.functional.hessian(norm.measure, weight.detach())
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(norm.measure))(weight.detach()), hessian)


@pytest.mark.parametrize("norm", [fp.Gram(), fp.SVD()], ids=str)
@pytest.mark.parametrize("spectrum", [(0, 0, 0), (1, 0, 0), (3, 1, 1), (1, 1, 1)], ids=str)
def test_second_derivatives_need_no_distinct_values(norm, spectrum):
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
def test_one_gradient_for_all_ways_to_take_it(norm, eps):
    for weight in (torch.eye(5), torch.zeros(3, 5), nn.init.orthogonal_(torch.empty(6, 4)), torch.randn(4, 6)):
        leaf = weight.clone().requires_grad_()
        (expected,) = torch.autograd.grad(norm.measure(leaf), leaf)
        found = torch.func.grad(norm.measure)(weight)
        torch.testing.assert_close(found, expected, rtol=0, atol=1000 * eps)


# In torch 2.4 the checkpoint itself calls torch.cpu.amp.autocast, which torch 2.4 deprecates.
@pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.autocast:FutureWarning")
@pytest.mark.parametrize("norm", [fp.Gram(), fp.SVD(), fp.PathNorm()], ids=str)
def test_checkpointing_and_meta_tensors(norm):
    g, x = fp.LipschitzMLP(3, (4, 4), norm=norm), torch.randn(2, 3, requires_grad=True)
    checkpoint.checkpoint(g, x, use_reentrant=False).sum().backward()
    found = g.layers[0].weight.grad.clone()
    g.zero_grad()
    g(x).sum().backward()
    assert torch.equal(found, g.layers[0].weight.grad)
    assert g.to("meta")(x.to("meta")).shape == x.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("norm", [fp.Gram(), fp.SVD()], ids=str)
def test_weights_of_half_precision(norm, dtype):
    weight = torch.nn.init.orthogonal_(torch.empty(128, 128, dtype=torch.float32)).to(dtype)
    over, rounding = 128 ** (1 / 258) if norm == fp.Gram() else 1, torch.finfo(dtype).eps
    assert 1 - rounding <= float(norm.measure(weight)) <= over * (1 + rounding)
    for projected in (norm.project(weight, 0.5), *norm.project_all([weight, weight.T], [0.5, 0.5])):
        assert projected.dtype == dtype
        assert float(torch.linalg.matrix_norm(projected.float(), 2)) <= 0.5 * (1 + torch.finfo(dtype).eps)


@pytest.mark.usefixtures("users_defaults")
def test_layers_on_several_devices():
    g = fp.LipschitzMLP(3, (4, 4), norm=fp.Gram())
    g.layers[1].to("meta")
    assert [weight.device.type for weight in g.bounded_weights()] == ["cpu", "meta", "cpu"]


@pytest.mark.parametrize("norm", [fp.Gram(), fp.SVD()], ids=str)
def test_together_as_one_by_one(norm, eps):
    shapes, limits = [(5, 9), (9, 5), (9, 9), (7, 5), (5, 9), (5, 9, 1)], [0.7, 0.7, 0.9, 0.5, 0.7, 0.7]
    for count, bounds in ((5, limits), (6, limits), (5, [0.7] * 6)):
        weights = [torch.randn(shape, requires_grad=True) for shape in shapes[:count]]
        seeds = [torch.randn_like(weight) for weight in weights]
        together = norm.project_all(weights, bounds[:count])
        apart = [norm.project(weight, bound) for weight, bound in zip(weights, bounds, strict=False)]
        for found, expected in zip(together, apart, strict=True):
            torch.testing.assert_close(found, expected, rtol=100 * eps, atol=0)
        gradients = (torch.autograd.grad(projected, weights, seeds) for projected in (together, apart))
        for found, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e4 * eps)
