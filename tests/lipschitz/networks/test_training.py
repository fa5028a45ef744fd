"""Bounds that hold while an adversary trains against them, with no manual call."""

import math

import pytest
import torch

import flowplug as fp

pytestmark = pytest.mark.slow

EXACT_ORDERS = (1.0, 2.0, math.inf)
MIXED = (fp.InducedNorm(1.5, 3.0), fp.InducedNorm(3.0, 1.2), fp.InducedNorm(1.2, 1.5))
NORMS = [
    fp.InfNorm(),
    fp.OneNorm(),
    fp.Gram(),
    fp.SVD(),
    fp.PowerIteration(),
    fp.InducedNorm(1.7, 1.7),
    fp.LearnedOrder(),
    fp.LearnedOrder(low=1.0, high=4.0, shared=True),
    MIXED,
]


def tolerance(norm):
    return 5e-3 if isinstance(norm, fp.PowerIteration) else 2e-5


def largest_norm(matrices, p, q):
    """The norm from p to q where it is known, else what the power method finds."""
    if p == q and p in EXACT_ORDERS:
        return float(torch.linalg.matrix_norm(matrices, p).max())
    return max(float(fp.InducedNorm(p, q).estimate(matrix, rtol=1e-4)) for matrix in matrices)


def attack(g, x, context=None, steps=300):
    """Enlarges the Jacobians of g as fast as Adam can; yields after every step."""
    optimizer = torch.optim.Adam(g.parameters(), lr=0.05)
    for _ in range(steps):
        loss = -fp.Branch.of(g, context).jacobian(x)[1].square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_mlp_stays_below_its_bound(norm):
    g, slack = fp.LipschitzMLP(4, (12, 12), bound=0.9, norm=norm), 1 + tolerance(norm)
    for step, _ in enumerate(attack(g, torch.randn(16, 4))):
        if step % 60 and step > 2:
            continue
        bound = fp.lipschitz_bound(g)
        assert float(bound) <= 0.9 * slack
        for layer, weight in zip(g.layers, g.bounded_weights(), strict=True):
            part = layer.certify(weight)
            codomain = part.domain if part.codomain is None else part.codomain
            assert largest_norm(weight.detach()[None], part.domain, codomain) <= 0.9 ** (1 / 3) * slack
    jacobians = fp.Branch.of(g, None).jacobian(3 * torch.randn(100, 4))[1].detach()
    largest = largest_norm(jacobians, bound.domain, bound.domain)
    assert largest <= float(bound) * (1 + 1e-5)
    assert largest > 0.4  # the adversary got somewhere


@pytest.mark.parametrize("norm", [fp.Gram(), fp.PowerIteration(), fp.InfNorm(), fp.LearnedOrder(shared=True)], ids=str)
def test_cnn_stays_below_its_bound(norm):
    g, slack = fp.LipschitzCNN(2, (6,), bound=0.9, norm=norm), 1 + tolerance(norm)
    for _ in attack(g, torch.randn(4, 2, 4, 4), steps=100):
        pass
    bound = fp.lipschitz_bound(g)
    assert float(bound) <= 0.9 * slack
    for side in (3, 5):
        jacobians = fp.Branch.of(g, None).jacobian(torch.randn(20, 2, side, side))[1].detach()
        assert 0.2 < largest_norm(jacobians, bound.domain, bound.domain) <= float(bound) * (1 + 1e-5)


@pytest.mark.parametrize(
    "norm", [fp.Gram(), fp.InfNorm(), fp.InducedNorm(1.6, 1.6), fp.LearnedOrder(shared=True)], ids=str
)
def test_dense_net_stays_below_its_bound(norm):
    g = fp.LipschitzDenseNet(3, (6, 6), bound=0.9, norm=norm, activation=lambda: fp.CLipSwish(1.5))
    for _ in attack(g, torch.randn(16, 3)):
        pass
    bound = fp.lipschitz_bound(g)
    assert float(bound) <= 0.9 * 1.00002
    jacobians = fp.Branch.of(g, None).jacobian(3 * torch.randn(100, 3))[1].detach()
    assert 0.4 < largest_norm(jacobians, bound.domain, bound.domain) <= float(bound) * (1 + 1e-5)
