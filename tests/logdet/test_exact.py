"""The exact log-det of a linear branch."""

import math

import pytest
import torch

import flowplug as fp
from helpers import Scale


@pytest.mark.parametrize("a", [-0.98, -0.5, 0.5, 0.9])
def test_exact(a, eps):
    transform, x = fp.ResidualTransform(Scale(a), logdet=fp.ExactLogDet()), torch.randn(5, 3)
    ladj = transform(x)[1]
    torch.testing.assert_close(ladj, torch.full((5,), 3 * math.log1p(a)), atol=1000 * eps, rtol=0)
    weights = torch.linspace(0, 1, 5)
    (gradient,) = torch.autograd.grad(weights @ ladj, transform.g.a)
    torch.testing.assert_close(gradient, weights.sum() * 3 / (1 + a), atol=0, rtol=1000 * eps)
