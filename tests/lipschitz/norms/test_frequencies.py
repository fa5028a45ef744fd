"""Convolutions at the frequencies of a grid: Gram matrices without the matrices, and one matrix with its gradient."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import flowplug as fp
from flowplug.lipschitz.norms._frequencies import at_frequency, grams
from flowplug.lipschitz.norms._spectral import smaller_gram, symbol

SHAPES = [(3, 4, 3), (4, 2, 3, 3), (2, 5, 2, 4), (1, 3, 1, 3), (2, 3, 3, 2, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gram_matrices_are_those_of_the_matrices(shape, eps):
    weight = torch.randn(shape)
    wanted = torch.linalg.eigvalsh(smaller_gram(symbol(weight)[0]))
    torch.testing.assert_close(torch.linalg.eigvalsh(grams(weight)), wanted, atol=1e3 * eps, rtol=1e3 * eps)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_matrix_is_that_of_the_grid_at_its_index(shape, eps):
    weight = torch.randn(shape)
    stack, _ = symbol(weight)
    for index in (0, 1, len(stack) // 2, len(stack) - 1):
        found = at_frequency(weight, torch.tensor(index))
        torch.testing.assert_close(found, stack[index], atol=100 * eps, rtol=100 * eps)


@pytest.mark.parametrize("norm", [fp.Gram(), fp.SVD()], ids=str)
def test_the_gradient_is_that_of_the_loudest_frequency(norm, eps):
    weight = torch.randn(3, 2, 3, 3, requires_grad=True)
    stack, slack = symbol(weight)
    loudest = int(torch.linalg.matrix_norm(stack.detach(), 2).argmax())
    wanted = torch.autograd.grad(slack * norm.measure(stack[loudest]), weight)
    found = torch.autograd.grad(norm.measure(weight), weight)
    torch.testing.assert_close(found, wanted, atol=1e4 * eps, rtol=1e4 * eps)


def test_the_layers_of_a_network_are_measured_together(monkeypatch):
    """All grids in one product, and then the matrices of one frequency each, of equal sides in one."""
    g, sizes, powers = fp.LipschitzCNN(2, (8, 8)), [], fp.Gram._relative
    monkeypatch.setattr(fp.Gram, "_relative", lambda self, gram: sizes.append(gram.shape) or powers(self, gram))
    weights = g.bounded_weights()
    assert sorted(sizes) == [(2, 2, 2), (8, 8), (2 * 24 * 13, 2, 2)]
    for layer, weight in zip(g.layers, weights, strict=True):
        torch.testing.assert_close(weight, layer.bounded_weight())


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_kernels_of_any_scale(scale, eps):
    weight = torch.randn(3, 2, 3, 3)
    for norm in (fp.Gram(), fp.SVD()):
        found = float(norm.measure(scale * weight)) / (scale * float(norm.measure(weight)))
        assert abs(found - 1) <= 100 * eps
        assert float(norm.measure(0 * weight)) == 0


def special_kernels():
    """Kernels that let some frequencies pass by nothing, where rounding decides."""
    line = torch.tensor([1.0, 2.0, 1.0])
    yield torch.ones(4, 4, 3, 3)
    yield torch.randn(4, 4, 1, 1) * torch.ones(3, 3)
    yield torch.outer(line, torch.tensor([1.0, 0.0, -1.0])).reshape(1, 1, 3, 3)  # Sobel
    yield torch.outer(line, line).reshape(1, 1, 3, 3)
    yield torch.randn(16, 16, 1, 1) * torch.outer(line, line)
    yield torch.ones(1, 1, 4)
    yield torch.ones(1, 1, 2, 2, 2)
    for _ in range(20):
        free = torch.randn(8, 2, 3, 3)
        yield free - free.mean((2, 3), keepdim=True)
        yield torch.randn(2, 2, 3, 3).sign()
        yield torch.ones(2, 2, 3, 3) + 1e-4 * torch.randn(2, 2, 3, 3)


def test_frequencies_that_pass_by_nothing_are_not_taken_for_the_loudest(eps):
    for weight in special_kernels():
        norm, certificate = float(fp.SVD().measure(weight)), float(fp.Gram().measure(weight))
        assert norm * (1 - 1e3 * eps) <= certificate <= 1.02 * norm
        assert float(fp.SVD().measure(fp.Gram().project(weight, 0.9))) <= 0.9 * (1 + 1e3 * eps)


def test_what_is_kept_for_a_kernel_is_not_of_a_mode():
    weight = torch.randn(2, 3, 5, 7)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fp.Gram().measure(torch.randn(2, 3, 5, 7))
    assert float(fp.Gram().measure(weight)) > 0
    with FakeTensorMode() as mode:
        fp.Gram().measure(mode.from_tensor(weight))
