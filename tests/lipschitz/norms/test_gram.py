"""Gram iteration is a Schatten norm."""

import pytest
import torch

import flowplug as fp


@pytest.mark.parametrize("iterations", range(1, 9))
@pytest.mark.parametrize("shape", [(5, 5), (7, 4), (4, 7), (1, 6)])
def test_gram_is_a_schatten_norm(iterations, shape, eps):
    weight = torch.randn(shape, requires_grad=True)
    values = torch.linalg.svdvals(weight.double())
    order = 2 ** (iterations + 1) + 2
    expected = values[0] * (values / values[0]).pow(order).sum() ** (1 / order)
    found = fp.Gram(iterations).measure(weight)
    assert abs(float((found / expected).detach()) - 1) <= 20 * eps
    gradients = [torch.autograd.grad(value, weight)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1000 * eps)


def test_bad_iterations():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        fp.Gram(iterations=0)
