"""The projected series, exact gradients without a graph, and control variates, against dense linear algebra."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import flowplug as fp
from cases import small_mlp
from flowplug import Branch, Noise, Probes
from helpers import Coupled, Scale


@dataclass(frozen=True)
class Basis(Probes):
    """A full basis: the trace is exact, and with it the log-det."""

    def draw(self, like, generator):
        size = like[0].numel()
        rows = math.sqrt(size) * torch.eye(size).reshape(size, 1, *like.shape[1:])
        return rows.expand(size, *like.shape).contiguous()


@dataclass(frozen=True)
class Fixed(Probes):
    """One given probe for all rows."""

    v: tuple[float, ...] = ()

    def draw(self, like, generator):
        return torch.tensor(self.v).expand_as(like)[None].contiguous()


class Matrix(nn.Module):
    """g(x) = M x, with the given bound."""

    def __init__(self, matrix, norm=math.inf):
        super().__init__()
        self.matrix, self.norm = nn.Parameter(matrix), norm

    def forward(self, x):
        return x @ self.matrix.T


@fp.lipschitz_bound.register
def _(module: Matrix):
    return fp.LipschitzBound(torch.linalg.matrix_norm(module.matrix, module.norm), module.norm)


def sequential():
    return nn.Sequential(fp.LipschitzLinear(3, 8, bound=0.9), nn.Tanh(), fp.LipschitzLinear(8, 3, bound=0.9))


NETWORKS = {
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


def event(g):
    return getattr(g, "event_shape", None) or ((len(g.matrix),) if isinstance(g, Matrix) else (3,))


def assert_all_close(got, wanted, tolerance):
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


class TestAgainstTheExactLogDet:
    @pytest.mark.parametrize("control", [fp.ExactTrace(), None])
    @pytest.mark.parametrize(
        "terms", [fp.Truncated(8), fp.Truncated(60), fp.Converged(1e-15), fp.Roulette(fp.Geometric(0.5), exact=6)]
    )
    @pytest.mark.parametrize("name", NETWORKS)
    def test_a_full_basis_and_dimension_is_exact(self, name, terms, control, eps):
        """In D dimensions every term after D is zero, whatever its weight: breakdown, low rank and d = 1 included."""
        g = NETWORKS[name]()
        x = torch.randn(6, *event(g))
        logdet = fp.Krylov(terms=terms, probes=Basis(x[0].numel()), control=control)
        exact = value_and_gradients(g, fp.ExactLogDet(), x)
        # The condition of I + J is 100 in the nearly singular case, and its square goes into the gradient.
        tolerance = (2000 if name == "near singular" else 200) * eps
        assert_all_close(value_and_gradients(g, logdet, x), exact, tolerance)

    @pytest.mark.parametrize("make", [fp.Krylov, fp.PowerSeries])
    @pytest.mark.parametrize("gradient", [fp.Neumann(), fp.Recompute(), fp.Autograd()])
    def test_converged_is_within_its_bound(self, make, gradient):
        if make is fp.Krylov and gradient == fp.Autograd():
            with pytest.raises(TypeError, match="Neumann"):
                make(gradient=gradient)
            return
        # In few dimensions a projection may be exact, and nothing would be left of the error.
        size, rtol = 12, 1e-2
        matrix, x = torch.randn(size, size), torch.randn(6, size)
        g = Matrix(0.6 * matrix / torch.linalg.matrix_norm(matrix, 2), norm=2.0)
        logdet = make(terms=fp.Converged(rtol), probes=Basis(size), gradient=gradient)
        (value, *_), (exact, *_) = (value_and_gradients(g, ld, x) for ld in (logdet, fp.ExactLogDet()))
        # Per probe of square D the error of v^T log(I + J) v is at most D rtol L / (1 - L), and it is averaged.
        error = float((value - exact).abs().max())
        assert 1e-8 < error <= size * rtol * 0.6 / 0.4

    @pytest.mark.parametrize("make", [fp.Krylov, fp.PowerSeries])
    def test_not_converged(self, make):
        transform = fp.ResidualTransform(Coupled(), logdet=make(terms=fp.Converged(1e-6, max_terms=2)))
        with pytest.raises(fp.NotConverged, match="1e-06 in 2 terms"):
            transform(torch.randn(3, 4))

    def test_rows_stop_one_by_one(self):
        """A nilpotent Jacobian in some rows: the others alone are multiplied on."""

        class PerRow(Matrix):
            def forward(self, x):
                return torch.where(x[:, :1] > 0, x @ self.matrix.T, 0 * x)

        fp.lipschitz_bound.register(PerRow, lambda module: fp.LipschitzBound(0.9))
        g = PerRow(0.9 * torch.linalg.qr(torch.randn(5, 5)).Q, 2)
        x = torch.randn(8, 5)
        x[:, 0] = torch.tensor([1.0, -1.0]).repeat(4)
        sizes, keep = [], fp.logdet._series.Recurrence.keep
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                fp.logdet._series.Recurrence, "keep", lambda self, index: sizes.append(len(index)) or keep(self, index)
            )
            logdet = fp.Krylov(terms=fp.Converged(1e-12), probes=Basis(5))
            got = value_and_gradients(g, logdet, x)
        assert sizes[0] == 4
        assert_all_close(got, value_and_gradients(g, fp.ExactLogDet(), x), 1e-3)


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


class TestConvergence:
    def test_faster_than_powers(self):
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
            power, krylov = (
                (estimates[make][part] - limit[part]).square().mean() for make in (fp.PowerSeries, fp.Krylov)
            )
            assert float(krylov) < float(power) / 30


class TestControl:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_trace(self, name, eps):
        g = NETWORKS[name]()
        branch, x = Branch.of(g, None), torch.randn(6, *event(g))
        trace = branch.linearize(x).trace()
        if not isinstance(g, fp.LipschitzMLP) or name == "three hidden layers":
            assert trace is None
            return
        expected = branch.jacobian(x)[1].diagonal(dim1=1, dim2=2).sum(1)
        torch.testing.assert_close(trace, expected, atol=100 * eps, rtol=0)

    @pytest.mark.parametrize("make", [fp.Krylov, fp.PowerSeries])
    def test_lowers_the_variance(self, make):
        g, x = fp.LipschitzMLP(20, (30,)), torch.randn(1, 20).expand(500, 20)
        with_control, without = (
            fp.ResidualTransform(g, logdet=make(terms=fp.Truncated(20), control=control))(x)[1].detach().var()
            for control in (fp.ExactTrace(), None)
        )
        assert float(with_control) < float(without) / 3


class TestRecompute:
    @pytest.mark.parametrize("make", [fp.Krylov, fp.PowerSeries])
    @pytest.mark.parametrize("name", [*NETWORKS, "context"])
    def test_equals_neumann(self, name, make, eps):
        g = small_mlp(context_features=2) if name == "context" else NETWORKS[name]()
        x, context = torch.randn(6, *event(g)), torch.randn(6, 2) if name == "context" else None
        logdet = make(terms=fp.Roulette(fp.Certified()), probes=fp.Rademacher(2))
        results = [
            value_and_gradients(g, replace(logdet, gradient=h), x, context) for h in (fp.Neumann(), fp.Recompute())
        ]
        scale = 1 + max(float(part.abs().max()) for part in results[0])
        assert_all_close(results[1], results[0], 200 * eps * scale)

    @pytest.mark.parametrize("make", [fp.Krylov, fp.PowerSeries])
    def test_what_is_kept_does_not_grow_with_the_terms(self, make):
        kept = {}
        for gradient in (fp.Recompute(), fp.Neumann(), fp.Autograd()):
            if make is fp.Krylov and gradient == fp.Autograd():
                continue
            for n in (2, 40):
                size = 0

                def pack(tensor):
                    nonlocal size
                    size += tensor.numel()
                    return tensor

                transform = fp.ResidualTransform(small_mlp(), logdet=make(terms=fp.Truncated(n), gradient=gradient))
                with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                    transform(torch.randn(50, 3, requires_grad=True))
                kept[gradient, n] = size
        assert kept[fp.Recompute(), 2] == kept[fp.Recompute(), 40] < kept[fp.Neumann(), 40] / 4
        if make is fp.PowerSeries:
            assert kept[fp.Autograd(), 40] > 5 * kept[fp.Autograd(), 2]

    def test_functional_call(self, eps):
        """The parameters of the call are used and get the gradient, also after it is over."""
        transform = fp.ResidualTransform(sequential(), logdet=fp.Krylov(gradient=fp.Recompute()))
        x = torch.randn(6, 3)
        other = {name: (0.5 * p.detach()).requires_grad_() for name, p in transform.named_parameters()}
        with fp.fixed_noise(0):
            ladj = torch.func.functional_call(transform, other, (x,))[1]
            gradients = torch.autograd.grad(ladj.sum(), list(other.values()), materialize_grads=True, allow_unused=True)
            for name, p in transform.named_parameters():
                p.data.copy_(other[name].detach())
            transform.logdet = fp.Krylov()
            wanted = torch.autograd.grad(
                transform(x)[1].sum(), list(transform.parameters()), materialize_grads=True, allow_unused=True
            )
        assert_all_close(gradients, wanted, 200 * eps)

    def test_parameters_changed_before_backward_are_noticed(self):
        transform = fp.ResidualTransform(small_mlp(), logdet=fp.Krylov(gradient=fp.Recompute()))
        loss = transform(torch.randn(6, 3))[1].sum()
        with torch.no_grad():
            for p in transform.parameters():
                p.add_(0.1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    @pytest.mark.usefixtures("users_defaults")
    def test_autocast(self):
        x, results = torch.randn(64, 3), []
        g = fp.LipschitzMLP(3, (32,))
        for gradient in (fp.Neumann(), fp.Recompute()):
            transform = fp.ResidualTransform(g, logdet=fp.Krylov(gradient=gradient))
            transform.noise_seed.fill_(0)
            with torch.autocast("cpu", dtype=torch.bfloat16), fp.fixed_noise(0):
                ladj = transform(x)[1]
            assert ladj.dtype == torch.float32
            results.append(torch.autograd.grad(ladj.sum(), list(g.layers.parameters()), allow_unused=True))
        assert_all_close(results[1][:1], results[0][:1], 1e-5)

    def test_random_modules_are_refused(self):
        class Noisy(Matrix):
            def forward(self, x):
                return super().forward(nn.functional.dropout(x))

        fp.lipschitz_bound.register(Noisy, lambda module: fp.LipschitzBound(0.5))
        transform = fp.ResidualTransform(Noisy(0.2 * torch.eye(3)), logdet=fp.Krylov(gradient=fp.Recompute()))
        with pytest.raises(fp.LipschitzError, match=r"g = Noisy draws random numbers"):
            transform(torch.randn(4, 3))
        with pytest.raises(fp.LipschitzError, match="Dropout"):
            fp.ResidualTransform(nn.Sequential(Scale(0.5), nn.Dropout()))

    def test_second_derivatives_are_refused(self):
        transform = fp.ResidualTransform(small_mlp(), logdet=fp.Krylov(gradient=fp.Recompute()))
        x = torch.randn(4, 3, requires_grad=True)
        with pytest.raises(fp.SecondDerivativeError, match="Recompute is differentiable once"):
            torch.autograd.grad(transform(x)[1].sum(), x, create_graph=True)

    def test_frozen_affine_branch(self):
        """Its log-det is a constant, and the path through y is all that is left."""
        g = fp.LipschitzMLP(3, ()).requires_grad_(requires_grad=False)
        x = torch.randn(4, 3, requires_grad=True)
        results = []
        for logdet in (fp.Krylov(gradient=fp.Recompute()), fp.ExactLogDet()):
            y, ladj = fp.ResidualTransform(g, logdet=logdet)(x)
            results += torch.autograd.grad(y.square().sum() + ladj.sum(), x)
        torch.testing.assert_close(*results)

    @pytest.mark.parametrize("terms", [fp.Truncated(5), fp.Converged(1e-4), fp.Roulette(fp.Certified(), exact=1)])
    @pytest.mark.parametrize("control", [None, fp.ExactTrace()])
    @pytest.mark.parametrize("inner", [fp.Autograd(), fp.Neumann(), fp.Recompute()])
    def test_repeats_any_gradient(self, inner, control, terms, eps):
        """The same probes and terms, so the same numbers."""
        g, results = small_mlp(context_features=2), []
        x, context = torch.randn(6, 3, requires_grad=True), torch.randn(6, 2, requires_grad=True)
        for gradient in (inner, fp.Recompute(inner)):
            logdet = fp.PowerSeries(terms=terms, probes=fp.Rademacher(2), gradient=gradient, control=control)
            with fp.fixed_noise(0):
                transform = fp.ResidualTransform(g, logdet=logdet)
                transform.noise_seed.zero_()
                y, ladj = transform(x, context)
            loss = y.square().sum() + torch.linspace(0, 1, 6) @ ladj
            results.append([y, ladj, *torch.autograd.grad(loss, [x, context, *g.parameters()])])
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted, atol=100 * eps, rtol=100 * eps)

    @pytest.mark.parametrize("gradient", [fp.Autograd(), fp.Recompute(fp.Autograd())])
    def test_krylov_has_no_terms_to_differentiate(self, gradient):
        with pytest.raises(TypeError, match=r"Krylov\(gradient=\.\.\.\) must not be Autograd"):
            fp.Krylov(gradient=gradient)


def test_krylov_is_differentiable_twice(eps):
    g, x = fp.LipschitzMLP(3, (8,)), torch.randn(4, 3, requires_grad=True)
    seconds = []
    for logdet in (fp.ExactLogDet(), fp.Krylov(terms=fp.Truncated(4), probes=Basis(3))):
        (first,) = torch.autograd.grad(fp.ResidualTransform(g, logdet=logdet)(x)[1].sum(), x, create_graph=True)
        assert first.requires_grad
        seconds.append(first)
    torch.testing.assert_close(seconds[0], seconds[1], atol=100 * eps, rtol=0)


@pytest.mark.parametrize("logdet", [fp.ExactLogDet(), fp.Krylov(terms=fp.Truncated(3)), fp.Krylov()])
@pytest.mark.usefixtures("users_defaults")
@pytest.mark.filterwarnings("ignore")  # those of dynamo about what it traces
def test_compiled_block_gives_the_same_numbers(logdet):
    torch._dynamo.reset()
    transform = fp.ResidualTransform(fp.LipschitzMLP(5, (16,)), logdet=logdet)
    compiled = torch.compile(transform, backend="aot_eager")
    x, results = torch.randn(32, 5), []
    for call in (transform, compiled):
        torch.manual_seed(0)
        transform.zero_grad(set_to_none=True)
        y, ladj = call(x)
        (y.square().sum() - ladj.sum()).backward()
        results.append([y.detach(), ladj.detach(), *(p.grad for p in transform.parameters())])
    assert_all_close(results[1], results[0], 1e-5)


@pytest.mark.usefixtures("users_defaults")
@pytest.mark.filterwarnings("ignore")  # those of dynamo about what it traces
def test_roulette_breaks_no_compiled_graph():
    counts = []
    for logdet in (fp.Krylov(terms=fp.Truncated(2)), fp.Krylov()):
        torch._dynamo.reset()
        transform = fp.ResidualTransform(fp.LipschitzMLP(5, (16,)), logdet=logdet)
        counts.append(torch._dynamo.explain(transform)(torch.randn(512, 5)).graph_break_count)
    assert counts[1] == counts[0]


@pytest.mark.parametrize("logdet", [fp.ExactLogDet(), fp.Krylov(terms=fp.Truncated(3))])
def test_torch_func_grad(logdet, eps):
    transform = fp.ResidualTransform(fp.LipschitzMLP(5, (16,)), logdet=logdet)
    x, parameters = torch.randn(8, 5), dict(transform.named_parameters())

    def loss(parameters):
        with fp.fixed_noise(0):
            return torch.func.functional_call(transform, parameters, (x,))[1].sum()

    got = torch.func.grad(loss)({name: p.detach() for name, p in parameters.items()})
    wanted = torch.autograd.grad(loss(parameters), list(parameters.values()), allow_unused=True, materialize_grads=True)
    assert_all_close(got.values(), wanted, 100 * eps)


def test_noise_of_an_estimate_repeats():
    g, x = small_mlp(), torch.randn(20, 3)
    first, again = (fp.Krylov()(Branch.of(g, None), x, Noise(torch.tensor(5)))[1] for _ in range(2))
    assert torch.equal(first, again)
