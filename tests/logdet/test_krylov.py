"""The projected series, against dense linear algebra."""

import math
from dataclasses import dataclass

import pytest
import torch

import flowplug as fp
from helpers import BRANCHES, Basis, Matrix, assert_all_close, event, value_and_gradients


@dataclass(frozen=True)
class Fixed(fp.Probes):
    """One given probe for all rows."""

    v: tuple[float, ...] = ()

    def draw(self, like, generator):
        return torch.tensor(self.v).expand_as(like)[None].contiguous()


@pytest.mark.parametrize("control", [fp.ExactTrace(), None])
@pytest.mark.parametrize(
    "terms", [fp.Truncated(8), fp.Truncated(60), fp.Converged(1e-15), fp.Roulette(fp.Geometric(0.5), exact=6)]
)
@pytest.mark.parametrize("name", BRANCHES)
def test_a_full_basis_and_dimension_is_exact(name, terms, control, eps):
    """In D dimensions every term after D is zero, whatever its weight: breakdown, low rank and d = 1 included."""
    g = BRANCHES[name]()
    x = torch.randn(6, *event(g))
    logdet = fp.Krylov(terms=terms, probes=Basis(x[0].numel()), control=control)
    exact = value_and_gradients(g, fp.ExactLogDet(), x)
    # The condition of I + J is 100 in the nearly singular case, and its square goes into the gradient.
    tolerance = (2000 if name == "near singular" else 200) * eps
    assert_all_close(value_and_gradients(g, logdet, x), exact, tolerance)


class TestRitzValuesBeyondMinusOne:
    """Under the inf-norm J may have spectral radius 0 and yet v^T J v <= -|v|^2."""

    REST = (1.0, 1.2, 0.9, 1.1, 1.0, 0.8, 1.3)

    @pytest.fixture(params=["beyond", "at"])
    def probe(self, request):
        """Makes v^T J v / |v|^2 equal to -1.28, or -1 to rounding: a singular projection."""
        if request.param == "beyond":
            return (2.6, *self.REST)
        half = 0.97 / 2 * sum(self.REST)
        return (half + math.sqrt(half**2 - sum(v * v for v in self.REST)), *self.REST)

    @pytest.mark.parametrize("terms", [fp.Truncated(2), fp.Truncated(12), fp.Converged(1e-12)])
    def test_such_rows_go_on_with_powers(self, probe, terms, eps):
        matrix, v, x = torch.zeros(8, 8), torch.tensor(probe), torch.randn(5, 8)
        matrix[1:, 0] = -0.97
        product = v @ matrix @ v  # J^2 = 0, so this is the value
        assert float(product) <= -float(v @ v) * (1 - 10 * eps)
        ladj, gradient, _ = value_and_gradients(Matrix(matrix), fp.Krylov(terms=terms, probes=Fixed(v=probe)), x)
        torch.testing.assert_close(ladj, product.expand(5), atol=0, rtol=1000 * eps)
        u = v - matrix.T @ v
        exact = torch.linspace(0, 1, 5).sum() * torch.outer(u, v) + torch.outer(torch.linspace(-1, 1, 8), x.sum(0))
        torch.testing.assert_close(gradient, exact, atol=0, rtol=1000 * eps)


def test_faster_than_powers():
    """At norm 0.95 and equal products the squared error of value and gradient falls to less than a thirtieth."""
    basis = torch.linalg.qr(torch.randn(20, 20)).Q
    g = Matrix(basis @ torch.diag(torch.linspace(-0.95, 0.95, 20)) @ basis.T, 2)
    x = torch.zeros(200, 20)
    with fp.fixed_noise(0):
        estimates = {}
        for make in (fp.PowerSeries, fp.Krylov):
            estimates[make] = value_and_gradients(g, make(terms=fp.Truncated(10), control=None), x)[:2]
        limit = value_and_gradients(g, fp.Krylov(terms=fp.Truncated(21), control=None), x)[:2]
    for part in (0, 1):
        power, krylov = ((estimates[make][part] - limit[part]).square().mean() for make in (fp.PowerSeries, fp.Krylov))
        assert float(krylov) < float(power) / 30


def test_krylov_is_differentiable_twice(eps):
    g, x = fp.LipschitzMLP(3, (8,)), torch.randn(4, 3, requires_grad=True)
    seconds = []
    for logdet in (fp.ExactLogDet(), fp.Krylov(terms=fp.Truncated(4), probes=Basis(3))):
        (first,) = torch.autograd.grad(fp.ResidualTransform(g, logdet=logdet)(x)[1].sum(), x, create_graph=True)
        assert first.requires_grad
        seconds.append(first)
    torch.testing.assert_close(seconds[0], seconds[1], atol=100 * eps, rtol=0)
