"""Convolutions at the frequencies of a grid: Gram matrices without the matrices, and one matrix with its gradient."""

import pytest
import torch

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
