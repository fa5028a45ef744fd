"""What several tests use: branches of known Jacobian, and the integral of a density."""

import torch
from torch import nn

import flowplug as fp


class Scale(nn.Module):
    """g(x) = a x, with the bound |a|."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, x):
        return self.a * x


@fp.lipschitz_bound.register
def _(module: Scale):
    return fp.LipschitzBound(module.a.abs())


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
    return fp.LipschitzBound(torch.linalg.matrix_norm(module.matrix, 2), 2.0)


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
