"""Anderson acceleration: fewer evaluations, and bad steps taken back."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import flowplug as fp
from helpers import SOLVERS


def test_anderson_needs_a_third_of_the_evaluations():
    """On a map of slopes from -0.95 to 0.95, at equal tolerance."""
    basis, counts = torch.linalg.qr(torch.randn(10, 10)).Q, {}

    class Counting(nn.Module):
        def forward(self, x):
            counts[solver] = counts.get(solver, 0) + len(x)
            return torch.sin(x @ basis) * torch.linspace(-0.95, 0.95, 10) @ basis.T

    fp.lipschitz_bound.register(Counting, lambda module: fp.LipschitzBound(0.95, 2.0))
    y = torch.randn(100, 10)
    for solver in SOLVERS[:2]:
        with torch.no_grad(), fp.no_logdet():
            fp.ResidualTransform(Counting(), solver=replace(solver, tol=1e-4)).inverse(y)
    assert 3 * counts[fp.Anderson()] < counts[fp.FixedPoint()]


def test_bad_accelerated_steps_are_taken_back():
    """A kinked map leads Anderson astray; it never needs more than twice the certain number of plain steps."""
    evaluations = 0

    class Kinks(nn.Module):
        def forward(self, x):
            nonlocal evaluations
            evaluations += 1
            return 0.9 * (((40 * x) % 4) - 2).abs() / 40

    fp.lipschitz_bound.register(Kinks, lambda module: fp.LipschitzBound(0.9))
    y = torch.randn(2000, 1)
    with torch.no_grad(), fp.no_logdet():
        x = fp.ResidualTransform(Kinks(), solver=fp.Anderson(tol=1e-4)).inverse(y)[0]
        error = (x + Kinks()(x) - y).abs().max()
    assert float(error) <= 1e-4 * 1.9
    # |r| starts below 0.05 and has to come to 1e-4 (1 - L) / L: 80 plain steps of factor 0.9.
    assert evaluations <= 2 * 80


def test_bad_memory():
    with pytest.raises(ValueError, match=r"Anderson\(memory=...\) must be at least 1; got 0"):
        fp.Anderson(memory=0)
