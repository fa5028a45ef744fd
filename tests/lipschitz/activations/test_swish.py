"""Concatenated swish: its constant in every norm."""

import math

import pytest
import torch
from torch import nn

import flowplug as fp


@pytest.mark.parametrize("order", [1.0, 1.5, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("scaled", [1.0, 2.0, math.inf])
def test_concatenated_swish_has_its_exact_constant_in_every_norm(order, scaled):
    activation, x = fp.CLipSwish(scaled), torch.linspace(-10, 10, 100_001).unsqueeze(1).requires_grad_()
    slopes = [torch.autograd.grad(activation(x)[:, i].sum(), x)[0] for i in range(2)]
    largest = float(torch.linalg.vector_norm(torch.cat(slopes, dim=1), order, dim=1).max())
    bound = activation.lipschitz_bound_in(order)
    assert bound.domain == order
    assert largest * (1 - 1e-6) <= float(bound) <= largest * (1 + 1e-6)
    assert (float(bound) <= 1 + 1e-9) == (order >= scaled)


def test_the_constants_of_concatenated_swish():
    """Of the pair before scaling: what its docstring says."""
    constants = {p: 1 / float(fp.CLipSwish(p).lipschitz_bound_in(math.inf)) for p in (1.0, 2.0)}
    swish = float(fp.lipschitz_bound(nn.SiLU()))
    assert [swish * constants[1.0], swish * constants[2.0], swish] == pytest.approx([1.1997, 1.1044, 1.0998], abs=5e-5)


def test_concatenated_swish_adds_up(eps):
    activation, x = fp.CLipSwish(math.inf), torch.randn(4, 3)
    right, left = activation(x).chunk(2, dim=1)
    torch.testing.assert_close((right - left) * float(fp.lipschitz_bound(nn.SiLU())), x, atol=10 * eps, rtol=0)
    torch.testing.assert_close(activation(-x), torch.cat([left, right], dim=1), atol=10 * eps, rtol=0)


def test_a_bad_order():
    with pytest.raises(fp.LipschitzError, match=r"CLipSwish\(order=...\) must be in \[1, inf\]; got 0.5"):
        fp.CLipSwish(0.5)
