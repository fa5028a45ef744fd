"""What several tests use: branches of known Jacobian, what is compared with them, and the integral of a density."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import flowplug as fp

ASSERTS = pytest.mark.skipif(
    "config.getoption('--device') == 'cuda'", reason="an assertion in a graph of a GPU ends its use by the process"
)
UNTRAINED = 0.0  # the limit of branches whose weights stay as they are


def told(call):
    """Calls; in training on a GPU, which reads nothing back, the next pass tells of the last one."""
    call()
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()
        call()


class Scale(nn.Module):
    """g(x) = a x, with the bound |a|."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, x):
        return self.a * x


@fp.lipschitz_bound.register
def _(module: Scale):
    return fp.LipschitzBound(module.a.abs(), limit=UNTRAINED)


class Coupled(nn.Module):
    """A linear g whose Jacobian has large off-diagonal entries, and norm 0.6."""

    def __init__(self):
        super().__init__()
        matrix = torch.randn(4, 4)
        self.matrix = nn.Parameter(0.6 * matrix / torch.linalg.matrix_norm(matrix, 2))

    def forward(self, x):
        return x @ self.matrix.T


@fp.lipschitz_bound.register
def _(module: Coupled):
    return fp.LipschitzBound(torch.linalg.matrix_norm(module.matrix, 2), 2.0, limit=UNTRAINED)


class Bounded(fp.Branch):
    """A branch of which nothing but the bound is known."""

    def __init__(self, bound):
        super().__init__(nn.Identity(), None)
        self.bound = bound

    def certify(self):
        return fp.LipschitzBound(self.bound)


@torch.no_grad()
def integral(log_prob, side=401, reach=5.0):
    """The trapezoid sum of exp(log_prob) over ``[-reach, reach]^2``, in float64."""
    line = torch.linspace(-reach, reach, side, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    total = sum(float(log_prob(rows).exp().sum()) for rows in points.split(100_000))
    return total * (2 * reach / (side - 1)) ** 2


class Matrix(nn.Module):
    """g(x) = M x, with the given bound."""

    def __init__(self, matrix, norm=math.inf):
        super().__init__()
        self.matrix, self.norm = nn.Parameter(matrix), norm

    def forward(self, x):
        return x @ self.matrix.T


@fp.lipschitz_bound.register
def _(module: Matrix):
    return fp.LipschitzBound(torch.linalg.matrix_norm(module.matrix, module.norm), module.norm, limit=UNTRAINED)


@dataclass(frozen=True)
class Basis(fp.Probes):
    """A full basis: the trace is exact, and with it the log-det."""

    def draw(self, like, generator):
        size = like[0].numel()
        rows = math.sqrt(size) * torch.eye(size).reshape(size, 1, *like.shape[1:])
        return rows.expand(size, *like.shape).contiguous()


def sequential():
    return nn.Sequential(fp.LipschitzLinear(3, 8, bound=0.9), nn.Tanh(), fp.LipschitzLinear(8, 3, bound=0.9))


BRANCHES = {
    "one hidden layer": lambda: fp.LipschitzMLP(3, (8,)),
    "two hidden layers": lambda: fp.LipschitzMLP(3, (8, 7), norm=fp.Gram()),
    "three hidden layers": lambda: fp.LipschitzMLP(3, (8, 8, 8), activation=fp.LipSwish),
    "none": lambda: fp.LipschitzMLP(3, ()),
    "tanh": lambda: fp.LipschitzMLP(3, (8,), activation=nn.Tanh),
    "sequential": sequential,
    "one dimension": lambda: fp.LipschitzMLP(1, (8,)),
    "image": lambda: fp.LipschitzMLP((2, 1, 2), (8,)),
    "multiple of the identity": lambda: Scale(-0.9),
    "low rank": lambda: Matrix(0.2 * torch.randn(5, 1) @ torch.randn(1, 5).sign() / 5),
    "near singular": lambda: Matrix(-0.99 * torch.eye(4)),
    "two dimensions": lambda: Matrix(torch.tensor([[-0.7, 0.25], [0.25, -0.7]])),
    "nilpotent": lambda: Matrix(0.9 * torch.diag(torch.ones(3), 1)),
}


def event(g):
    return getattr(g, "event_shape", None) or ((len(g.matrix),) if isinstance(g, Matrix) else (3,))


def value_and_gradients(g, logdet, x, context=None):
    transform = fp.ResidualTransform(g, logdet=logdet)
    transform.noise_seed.fill_(3)
    inputs = [t for t in (x, context) if t is not None]
    x, *rest = (t.detach().requires_grad_() for t in inputs)
    with fp.fixed_noise(1):
        y, ladj = transform(x, *rest)
    # Rows of weight 0 and 1, and a loss that depends on y as well.
    loss = torch.linspace(0, 1, len(x)) @ ladj + (y * torch.linspace(-1, 1, y[0].numel()).reshape(y.shape[1:])).sum()
    leaves = [*g.parameters(), x, *rest]
    return [ladj.detach(), *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)]


def assert_all_close(got, wanted, tolerance):
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def spread(g):
    """Weights of very unlike rows, so that hidden units differ in steepness."""
    with torch.no_grad():
        for layer in g.layers:
            layer.weight.mul_(torch.randn(layer.weight.shape[0]).exp().reshape(-1, *[1] * (layer.weight.dim() - 1)))
    return g


def true_norm(weight, norm):
    return torch.linalg.matrix_norm(weight, norm.orders()[0])


SOLVERS = [fp.FixedPoint(), fp.Anderson(), fp.Anderson(memory=1)]


def trained_to_stretch(transform, size, steps=30):
    """Drives the weights of g to their bound."""
    optimizer = torch.optim.Adam(transform.parameters(), lr=0.02)
    for _ in range(steps):
        x = torch.randn(32, size)
        optimizer.zero_grad()
        (-(transform(x)[1] ** 2).mean()).backward()
        optimizer.step()
    return transform
