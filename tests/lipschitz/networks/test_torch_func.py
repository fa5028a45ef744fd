"""Exact log-dets under the transforms of `torch.func`, for every network, norm and activation."""

import functools

import pytest
import torch
from torch import nn

import flowplug as fp
from helpers import assert_all_close, sequential

TWO = fp.LearnedOrder(2.0, 3.0, shared=True)
NORMS = (fp.PathNorm(), fp.InfNorm(), fp.OneNorm(), fp.Gram(), fp.SVD(), fp.PowerIteration(), TWO)
ACTIVATIONS = (
    fp.Sine,
    fp.LipSwish,
    functools.partial(fp.CLipSwish, order=1),
    fp.MaxMin,
    fp.FullSort,
    nn.Tanh,
    nn.PReLU,
)
NETWORKS = {
    **{f"MLP {norm}": functools.partial(fp.LipschitzMLP, 3, (4, 4), norm=norm) for norm in NORMS},
    **{f"MLP {kind}": functools.partial(fp.LipschitzMLP, 3, (4,), activation=kind) for kind in ACTIVATIONS},
    **{f"CNN {norm}": functools.partial(fp.LipschitzCNN, 1, (2,), norm=norm) for norm in (fp.Gram(), fp.SVD(), TWO)},
    "DenseNet": functools.partial(fp.LipschitzDenseNet, 3, (4,)),
    "Sequential": sequential,
}

# That of torch, as it loads its rules of forward mode.
# torch's own, at its first derivative in forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")


class LogDet(nn.Module):
    """That of ``x + g(x)`` at one point."""

    def __init__(self, g):
        super().__init__()
        self.g = g

    def forward(self, x):
        return fp.ExactLogDet()(fp.Branch.of(self.g, None), x[None], fp.Noise())[1].sum()


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS)
def case(request):
    g = request.param().eval()
    return LogDet(g), torch.randn(3, 1, 2, 2) if isinstance(g, fp.LipschitzCNN) else torch.randn(3, 3)


def gradient(f, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(f(x), x, create_graph=True, allow_unused=True, materialize_grads=True)[0]


def close(got, wanted, eps):
    torch.testing.assert_close(got, wanted, atol=1e4 * eps, rtol=1e4 * eps)


def test_derivatives_by_x(case, eps):
    f, points = case
    x = points[0]
    first, second = gradient(f, x), torch.autograd.functional.jacobian(lambda v: gradient_of(f, v), x)
    close(torch.func.jacrev(f)(x), first, eps)
    close(torch.func.jacfwd(f)(x), first, eps)
    close(torch.func.hessian(f)(x), second, eps)


def gradient_of(f, x):
    found = torch.autograd.grad(f(x), x, create_graph=True, allow_unused=True, materialize_grads=True)[0]
    return found + 0 * x


def test_rows_by_vmap(case, eps):
    f, points = case
    close(torch.func.vmap(f)(points), torch.stack([f(x) for x in points]), eps)
    close(torch.func.vmap(torch.func.grad(f))(points), torch.stack([gradient(f, x) for x in points]), eps)


def test_derivatives_by_weights(case, eps):
    f, points = case
    weights = {name: p.detach() for name, p in f.named_parameters()}
    tangents = {name: torch.randn_like(weight) for name, weight in weights.items()}

    def value(weights, x):
        return torch.func.functional_call(f, weights, (x,))

    wanted = [
        torch.autograd.grad(f(x), list(f.parameters()), allow_unused=True, materialize_grads=True) for x in points
    ]
    assert_all_close(torch.func.grad(value)(weights, points[0]).values(), wanted[0], 1e4 * eps)
    rows = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0))(weights, points)
    assert_all_close(rows.values(), [torch.stack(parts) for parts in zip(*wanted, strict=True)], 1e4 * eps)
    along = torch.func.jvp(lambda weights: value(weights, points[0]), (weights,), (tangents,))[1]
    product = sum((a * b).sum() for a, b in zip(wanted[0], tangents.values(), strict=True))
    close(along, product, eps)
