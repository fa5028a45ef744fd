"""The largest singular value and its subgradient."""

import math

import pytest
import torch
from torch import nn

import flowplug as fp

# Weights whose largest singular vector is orthogonal to coordinates, to constants, or one of many.
STRUCTURED = {
    "largest column elsewhere": lambda n: torch.block_diag(2 * torch.eye(n // 2), torch.full((n // 2, n // 2), 6 / n)),
    "alternating signs": lambda n: torch.ones(n, 1) * (-1.0) ** torch.arange(n) + 0.1 * torch.eye(n),
    "circulant": lambda n: torch.cos(6 * math.pi * (torch.arange(n)[:, None] - torch.arange(n)) / n),
    "orthogonal": lambda n: nn.init.orthogonal_(torch.empty(n, n)),
    "rank one": lambda n: torch.outer(torch.randn(n), torch.randn(n)),
    "one entry": lambda n: 3.0 * (torch.arange(n * n) == 5).view(n, n),
}


@pytest.mark.parametrize("count", [8, 64])
@pytest.mark.parametrize("name", STRUCTURED)
def test_gradient_of_the_largest_singular_value(name, count, eps):
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
