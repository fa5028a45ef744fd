"""The projected series, against dense linear algebra."""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import nn

import flowplug as fp
from flowplug.logdet import _krylov
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


def spectrum(low, high, size=16):
    """A symmetric g with evenly spaced eigenvalues."""
    basis = torch.linalg.qr(torch.randn(size, size)).Q
    return Matrix((basis * torch.linspace(low, high, size)) @ basis.T, 2)


def added(g, make, length, longest, rows=300):
    """The variance that 2 exact terms and a length add to those of the probe, of value and u: the docstring's sum.

    The gradient of row i with respect to the offset of row i is u_i, so that both are seen row by row.
    """
    branch, x = fp.Branch.of(g, None), torch.zeros(rows, len(g.matrix))
    survivals = [length.survival(max(0, k - 2), branch) for k in range(1, longest + 2)]
    parts = []
    for n in range(1, longest + 1):
        series = make(terms=fp.Truncated(n), control=None)
        draw = series._draw(branch, x, fp.Noise(torch.tensor(0)))[0]
        solved = series.solve(branch.linearize(x), draw, first=True)
        product = (branch.linearize(x).vjp(solved.u) * solved.v).sum(1)
        parts.append(torch.cat([(solved.known + solved.share * product).detach()[:, None], solved.u], dim=1))
    errors = torch.stack(parts) - parts[-1]
    squares = errors.square().mean(1)
    weights = torch.tensor([1 / b - 1 / a for a, b in pairwise(survivals)])
    value, *rest = weights @ squares
    return float(value), float(sum(rest))


class TestRoulette:
    """Where 2 products and little more are enough, and where not."""

    @pytest.fixture(autouse=True)
    def _double(self):
        torch.set_default_dtype(torch.float64)  # weights of late terms multiply rounding

    DEFAULT = fp.Krylov().terms.length

    def test_beside_minus_one_the_default_is_noisier_than_ten_times_the_products(self):
        """What the docstring says of it: eigenvalues from -0.9 to 0.95, against a power series with 21 products."""
        g = spectrum(-0.9, 0.95, size=8)
        value, u = added(g, fp.Krylov, self.DEFAULT, 8)
        power = added(g, fp.PowerSeries, fp.Certified(), 150)
        assert 10 < value / power[0] < 150  # that is its excess alone; the probe leaves a variance of about 10
        assert u > 20 * power[1]

    def test_for_the_same_lengths_the_projection_has_less(self):
        g = spectrum(-0.9, 0.95)
        krylov, power = added(g, fp.Krylov, fp.Certified(), 16), added(g, fp.PowerSeries, fp.Certified(), 150)
        assert krylov[0] < power[0] / 2
        assert krylov[1] < power[1] / 2

    def test_a_share_with_longer_series_has_less_for_as_many_products(self):
        old = fp.Geometric(0.85)
        assert self.DEFAULT.share * (1 / self.DEFAULT.p - 1) < 1 / old.p - 1
        g = spectrum(-0.9, 0.95)
        before, after = added(g, fp.Krylov, old, 16), added(g, fp.Krylov, self.DEFAULT, 16)
        assert after[0] < 0.7 * before[0]
        assert after[1] < before[1] / 10
        easy = spectrum(-0.3, 0.3)
        assert all(
            new < 1.25 * old
            for old, new in zip(added(easy, fp.Krylov, old, 16), added(easy, fp.Krylov, self.DEFAULT, 16), strict=True)
        )

    @pytest.mark.parametrize(("limit", "converges"), [(0.75, True), (0.9, False)])
    def test_beyond_0_8_the_noise_of_the_gradient_grows_with_the_dimension(self, limit, converges):
        small, large = (added(spectrum(-limit, limit, n), fp.Krylov, self.DEFAULT, n, 100)[1] / n for n in (12, 30))
        assert (large < 1.7 * small) == converges


def test_quadrature_first_met_in_inference_mode_can_be_differentiated():
    g, x = fp.LipschitzMLP(3, (8,)), torch.randn(4, 3)
    _krylov._kept.cache_clear()
    with torch.inference_mode():
        fp.Krylov()(fp.Branch.of(g, None), x, fp.Noise())
    assert not any(part.is_inference() for part in _krylov._quadrature(x.dtype, x.device))
    fp.Krylov()(fp.Branch.of(g, None), x, fp.Noise())[1].sum().backward()
    assert bool(g.layers[0].weight.grad.isfinite().all())


class Elementwise(nn.Module):
    """g(x) = M x without a matrix product, which autocast would round."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, x):
        return (x.unsqueeze(1) * self.matrix).sum(2)


@fp.lipschitz_bound.register
def _(module: Elementwise):
    return fp.LipschitzBound(torch.linalg.matrix_norm(module.matrix.float(), 2))


@pytest.mark.parametrize("terms", [fp.Truncated(4), fp.Truncated(17), fp.Converged(1e-3)])
def test_autocast_leaves_the_projection_alone(terms, users_defaults):
    g, x = Elementwise(spectrum(-0.9, 0.95).matrix.detach()), torch.zeros(20, 16)
    found = []
    for enabled in (False, True):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=enabled):
            ladj = fp.Krylov(terms=terms)(fp.Branch.of(g, None), x, fp.Noise(torch.tensor(0)))[1]
        found.append([ladj, *torch.autograd.grad(ladj.sum(), g.matrix)])
    torch.testing.assert_close(found[1], found[0], atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_the_products_alone(dtype, users_defaults):
    """An error of the projection itself would come to more than a unit in u, beside eigenvalues of -0.9."""
    matrix, found = spectrum(-0.9, 0.95).matrix.detach().to(dtype), []
    for own in (torch.float32, dtype):
        branch, x = fp.Branch.of(Elementwise(matrix.to(own)), None), torch.zeros(100, 16, dtype=own)
        series = fp.Krylov(terms=fp.Truncated(17))
        draw = series._draw(branch, x, fp.Noise(torch.tensor(0)))[0]
        found.append(series.solve(branch.linearize(x), draw, first=True).u)
    wanted, rounded = found
    assert rounded.dtype == dtype
    assert float((rounded - wanted).norm()) < torch.finfo(dtype).eps * float(wanted.norm())
