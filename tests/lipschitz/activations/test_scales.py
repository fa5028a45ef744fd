"""Inputs from the smallest to the largest: value, slope and gradient are finite and right."""

import functools
import math

import pytest
import torch
from torch import nn

import flowplug as fp

KINDS = [fp.SineHuber, fp.Sine, fp.LipSwish, fp.CLipSwish, fp.MaxMin, fp.FullSort, functools.partial(fp.GroupSort, 4)]


def inputs(dtype):
    """Up to the largest number over the highest frequency of `SineHuber`."""
    limits = torch.finfo(dtype)
    sizes = [limits.tiny, limits.eps**2, 1.0, limits.max**0.5, 4 * limits.max**0.5, limits.max / 40]
    return torch.tensor([sign * size for sign in (1, -1) for size in sizes] + [0.0], dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_everything_stays_finite(kind, dtype):
    module, x = kind().to(dtype), inputs(dtype)[:, None].expand(-1, 4).clone().requires_grad_()
    value = module(x)
    (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    parts = [value, slope]
    if isinstance(module, fp.Activation):
        parts += [*module.linearize(x), module.derivative(x)]
        parts += torch.autograd.grad(sum(part.sum() for part in module.linearize(x)), x)
    assert all(part.isfinite().all() for part in parts)
    assert float(slope.detach().abs().max()) <= 1 + 4 * torch.finfo(dtype).eps


def test_sine_huber_is_linear_far_out(eps):
    module, dtype = fp.SineHuber(highest=1.0), torch.get_default_dtype()
    x = inputs(dtype)[inputs(dtype).abs() > 2 / eps][:, None].expand(-1, 2).clone().requires_grad_()
    value = module(x)[:, 1]
    torch.testing.assert_close(value, x[:, 1].abs(), rtol=2 * eps, atol=0)
    assert torch.equal(module.linearize(x)[1][:, 1], x[:, 1].sign())
    assert torch.equal(torch.autograd.grad(value.sum(), x)[0][:, 1], x[:, 1].sign())


@pytest.mark.parametrize("training", [True, False])
def test_a_transform_far_out(training):
    """At 1e19 the square of a number of single precision is infinite, and log-dets were not a number."""
    transform = fp.ResidualTransform(fp.LipschitzMLP(2)).to(torch.float32).train(training)
    x = torch.tensor([[1e19, -1e19], [1e30, 1e25], [1e-30, -1e-35]], dtype=torch.float32, requires_grad=True)
    y, ladj = transform(x)
    (gradient,) = torch.autograd.grad(ladj.sum() + (y / 1e30).sum(), x)
    assert all(part.isfinite().all() for part in (y, ladj, gradient))
    assert (2 * math.log1p(-0.97) <= ladj).all()  # sines of such arguments are no two times the same
    assert (ladj <= 2 * math.log1p(0.97)).all()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_no_rows(kind):
    for spatial in ((), (3, 2)):
        x = torch.zeros(0, 4, *spatial, requires_grad=True)
        value = kind()(x)
        assert value.shape[0] == 0
        value.sum().backward()
        assert x.grad.shape == x.shape


@pytest.mark.parametrize("norm", [fp.PathNorm(), fp.Gram()], ids=str)
@pytest.mark.parametrize("activation", [*KINDS, nn.Tanh], ids=str)
def test_no_rows_in_networks(activation, norm):
    """The backward pass of a solver may reach g without rows."""
    g = fp.LipschitzMLP(2, (32,), norm=norm, activation=activation)
    transform, none = fp.ResidualTransform(g), torch.zeros(0, 2, requires_grad=True)
    for training in (True, False):
        transform.train(training)
        for direction in (transform, transform.inverse):
            y, ladj = direction(none)
            (y.sum() + ladj.sum()).backward()
        transform.inverse(torch.randn(8, 2))[0].sum().backward()
    branch = fp.Branch.of(g, None)
    assert branch.jacobian(none)[1].shape == (0, 2, 2)
    linear = branch.linearize(torch.zeros(3, 2)).select(slice(0))
    assert linear.vjp(none).shape == none.shape
