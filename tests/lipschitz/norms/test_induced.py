"""Norms from p to q, against brute force."""

import itertools
import math

import pytest
import torch

import flowplug as fp


def signs(count):
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=count))).T


def induced(weight, p, q, directions=20_000):
    """The norm from p to q: exact at the edges of the square of orders, elsewhere the largest ratio found at random."""
    if p == 1:
        return torch.linalg.vector_norm(weight, q, dim=0).max()
    if math.isinf(q):
        dual = 1.0 if math.isinf(p) else p / (p - 1)
        return torch.linalg.vector_norm(weight, dual, dim=1).max()
    if p == q == 2:
        return torch.linalg.svdvals(weight)[0]
    if math.isinf(p):  # convex: attained at a corner of the cube
        return torch.linalg.vector_norm(weight @ signs(weight.shape[1]), q, dim=0).max()
    if q == 1:
        return torch.linalg.vector_norm(weight.T @ signs(weight.shape[0]), p / (p - 1), dim=0).max()
    # Heavy-tailed and light-tailed directions: maxima lie near few coordinates or near the diagonals.
    x = torch.randn(weight.shape[1], directions)
    x = torch.sign(x) * x.abs() ** (3 * torch.rand(directions))
    return (torch.linalg.vector_norm(weight @ x, q, dim=0) / torch.linalg.vector_norm(x, p, dim=0)).max()


def test_bounds_and_estimates_enclose_brute_force_on_200_matrices(eps):
    orders = [1.0, 1.2, 1.5, 2.0, 2.5, 4.0, math.inf]
    closed = hit = known = 0
    for _ in range(200):
        p, q = (orders[int(i)] for i in torch.randint(len(orders), (2,)))
        m, n = (int(i) for i in torch.randint(1, 8, (2,)))
        weight = torch.randn(m, n) ** (1 + 2 * int(torch.randint(2, ())))
        norm = fp.InducedNorm(p, q)
        upper, lower, truth = float(norm.measure(weight)), float(norm.estimate(weight)), induced(weight, p, q)
        assert truth <= upper * (1 + 1000 * eps)
        assert lower <= upper * (1 + 1000 * eps)
        if p == 1 or math.isinf(q) or p == q == 2:
            closed += 1
            assert abs(upper / truth - 1) <= 1000 * eps
        if p == 1 or q == 1 or math.isinf(p) or math.isinf(q) or p == q == 2:
            assert lower <= truth * (1 + 1000 * eps)
            known, hit = known + 1, hit + int(lower >= 0.999 * truth)
        else:
            assert lower >= truth * 0.999
    assert closed > 40
    assert hit >= 0.97 * known


@pytest.mark.parametrize(("p", "q"), [(1.3, 1.8), (1.5, 1.5), (1.8, 3.0), (2.5, 4.0), (4.0, 1.3), (3.0, 2.2)])
def test_the_bound_is_not_loose(p, q):
    norm = fp.InducedNorm(p, q)
    ratios = [float(norm.measure(weight) / norm.estimate(weight)) for weight in torch.randn(50, 16, 16)]
    assert min(ratios) >= 1
    assert max(ratios) < 1.5


def test_the_bound_is_exact_for_a_single_entry(eps):
    weight = torch.zeros(4, 5)
    weight[2, 1] = -3.0
    for p, q in [(1.3, 1.3), (1.5, 2.2), (2.5, 3.0), (2.5, 2.5)]:
        assert abs(float(fp.InducedNorm(p, q).measure(weight)) / 3 - 1) <= 0.02


def test_the_power_method_is_power_iteration_at_2(eps):
    weight = torch.randn(6, 5)
    estimate = fp.InducedNorm(2, 2).estimate(weight, rtol=1e-12)
    torch.testing.assert_close(estimate, torch.linalg.matrix_norm(weight, 2), rtol=max(1e-6, 50 * eps), atol=0)


def test_only_matrices_are_estimated():
    with pytest.raises(fp.ShapeError, match=r"expects a matrix; got shape \(2, 3, 4\)"):
        fp.InducedNorm(2, 1.5).estimate(torch.zeros(2, 3, 4))


@pytest.mark.parametrize("orders", [(0.5, 2.0), (2.0, 0.0), (math.nan, 2.0)])
def test_bad_orders(orders):
    with pytest.raises(fp.LipschitzError, match=r"orders in \[1, inf\]"):
        fp.InducedNorm(*orders)
