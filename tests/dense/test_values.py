"""Deferred values: of the log-det, never of its gradient."""

import math

import pytest
import torch

import flowplug as fp


def test_deferred():
    transform = fp.DenseTransform(3, activation=None, value=fp.Deferred(every=3))
    x, values = torch.zeros(1, 3), []
    for i in range(7):
        with torch.no_grad():
            transform.weight.copy_(math.exp(i / 6) * torch.eye(3))
        values.append(float(transform(x)[1].detach()))
    assert values == pytest.approx([0, 0, 0, 1.5, 1.5, 1.5, 3], abs=1e-5)
    assert float(transform.eval()(x)[1].detach()) == pytest.approx(3, abs=1e-5)


def test_the_gradient_is_never_deferred():
    gradients = []
    for value in (fp.ExactValue(), fp.Deferred(every=10)):
        torch.manual_seed(0)
        transform, x = fp.DenseTransform(3, value=value), torch.randn(5, 3)
        for _ in range(2):
            with torch.no_grad():
                transform.weight.mul_(1.5)
            transform.zero_grad()
            y, ladj = transform(x)
            (y.square().sum() - ladj.sum()).backward()
        gradients.append(transform.weight.grad)
    assert torch.equal(*gradients)


def test_bad_interval():
    with pytest.raises(ValueError, match="Deferred needs positive sizes; got every=0"):
        fp.Deferred(0)
