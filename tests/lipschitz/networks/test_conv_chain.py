"""Products, traces and Jacobians of convolutional networks in closed form: those of autograd, to every order."""

import functools
import warnings

import pytest
import torch
from torch import nn

import flowplug as fp

NETWORKS = {
    "3-1-3": functools.partial(fp.LipschitzCNN, 2, (5, 6)),
    "3-1-3 circular": functools.partial(fp.LipschitzCNN, 2, (5, 6), padding_mode="circular"),
    "5-1-3": functools.partial(fp.LipschitzCNN, 2, (5, 6), kernel_sizes=(5, 1, 3), activation=fp.LipSwish),
    "2-1-4": functools.partial(fp.LipschitzCNN, 2, (5, 6), kernel_sizes=(2, 1, 4), activation=fp.SineHuber),
    "3-3 circular": functools.partial(fp.LipschitzCNN, 2, (5,), padding_mode="circular"),
    "3-4": functools.partial(fp.LipschitzCNN, 2, (5,), kernel_sizes=(3, 4), activation=nn.Tanh),
    "3-1": functools.partial(fp.LipschitzCNN, 2, (5,), kernel_sizes=(3, 1)),
}
NO_TRACE = {
    "3-3-3": functools.partial(fp.LipschitzCNN, 2, (5, 6), kernel_sizes=(3, 3, 3)),
    "3": functools.partial(fp.LipschitzCNN, 2, ()),
    "preactivation": functools.partial(fp.LipschitzCNN, 2, (5, 6), preactivation=True, activation=fp.LipSwish),
    "preactivation circular": functools.partial(fp.LipschitzCNN, 2, (5,), preactivation=True, padding_mode="circular"),
    "preactivation without frequency": functools.partial(
        fp.LipschitzCNN, 2, (5,), preactivation=True, activation=nn.Tanh
    ),
    "preactivation, twice as wide": functools.partial(
        fp.LipschitzCNN, 2, (5,), preactivation=True, activation=fp.CLipSwish
    ),
    "sorted": functools.partial(fp.LipschitzCNN, 2, (4,), activation=fp.MaxMin),
    "dense": functools.partial(fp.LipschitzDenseNet, 2, (4, 3), kernel_size=3),
    "dense, even": functools.partial(fp.LipschitzDenseNet, 2, (4, 3), kernel_size=2, activation=fp.Sine),
}
ALL = NETWORKS | NO_TRACE


def made(name, **keywords):
    with warnings.catch_warnings():
        # torch's, of a copy that its padding makes: even kernels are tried on purpose
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel")
        g = ALL[name](**keywords)
        g(torch.zeros(1, 2, 6, 6), *([torch.zeros(1, 2)] if g.context_features else []))
    for parameter in g.parameters():
        nn.init.normal_(parameter, std=0.5)
    return g


def differentiated(value, g, x):
    """First derivatives, and those of their squares."""
    sources, options = [x, *g.parameters()], {"allow_unused": True, "materialize_grads": True}
    first = torch.autograd.grad(value, sources, create_graph=True, **options)
    return [
        *first,
        *torch.autograd.grad(sum(part.square().sum() for part in first), sources, retain_graph=True, **options),
    ]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4)], ids=str)
@pytest.mark.parametrize("name", ALL)
class TestAgainstAutograd:
    def test_values_products_and_matrices(self, name, size, eps):
        g, x, context = made(name, context_features=2), torch.randn(3, 2, *size), torch.randn(3, 2)
        branch, v, chosen = fp.Branch.of(g, context), torch.randn(3, 2, *size), torch.tensor([2, 0])
        y, matrices = fp.Branch.jacobian(branch, x)
        linear = branch.linearize(x)
        products = (v.flatten(1).unsqueeze(1) @ matrices).reshape(v.shape)
        found = (
            linear.y,
            branch(x),
            branch.jacobian(x)[1],
            linear.vjp(v),
            linear.select(chosen).vjp(v[:2]),
        )
        wanted = y, y, matrices, products, (v[:2].flatten(1).unsqueeze(1) @ matrices[chosen]).reshape(v[:2].shape)
        torch.testing.assert_close(found, wanted, atol=100 * eps, rtol=100 * eps)
        assert not linear.vjp(v).requires_grad
        assert branch(x).is_contiguous()
        assert linear.y.is_contiguous()

    def test_derivatives_of_products(self, name, size, eps):
        g, x, v = made(name), torch.randn(3, 2, *size, requires_grad=True), torch.randn(3, 2, *size)
        branch, weights = fp.Branch.of(g, None), torch.randn(3)
        linear = branch.linearize(x)
        _, matrices = fp.Branch.jacobian(branch, x)
        products = (v.flatten(1).unsqueeze(1) @ matrices).squeeze(1), linear.vjp(v, create_graph=True).flatten(1)
        wanted, found = (differentiated(weights @ part.square().sum(1), g, x) for part in products)
        torch.testing.assert_close(found, wanted, atol=1e5 * eps, rtol=1e5 * eps)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (7, 3)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_traces_and_their_derivatives(name, size, eps):
    g, x, weights = made(name), torch.randn(3, 2, *size, requires_grad=True), torch.randn(3)
    branch = fp.Branch.of(g, None)
    trace, (_, matrices) = branch.linearize(x).trace(), fp.Branch.jacobian(branch, x)
    if trace is None:
        assert "circular" in name
        assert min(size) < 3
        return
    wanted = matrices.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(trace, wanted, atol=100 * eps, rtol=100 * eps)
    found, wanted = (differentiated(weights @ part.square(), g, x) for part in (trace, wanted))
    torch.testing.assert_close(found, wanted, atol=1e5 * eps, rtol=1e5 * eps)


@pytest.mark.parametrize("name", ["3-1-3", "3-3 circular"])
def test_traces_under_torch_func(name, eps):
    g, x, change = made(name), torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)

    def trace(x):
        return fp.Branch.of(g, None).linearize(x).trace()

    def of_jacobian(x):
        return fp.Branch.jacobian(fp.Branch.of(g, None), x)[1].diagonal(dim1=1, dim2=2).sum(1)

    for transform in (lambda f: torch.func.jvp(f, (x,), (change,)), lambda f: torch.func.jacrev(f)(x)):
        torch.testing.assert_close(transform(trace), transform(of_jacobian), atol=1e4 * eps, rtol=1e4 * eps)
    single = torch.func.vmap(lambda row: trace(row.unsqueeze(0)).squeeze(0))(x)
    torch.testing.assert_close(single, trace(x), atol=100 * eps, rtol=100 * eps)


class Arctan(fp.Activation):
    def forward(self, x):
        return x.arctan()

    def derivative(self, x):
        return 1 / (1 + x.square())


def test_traces_in_forward_mode(eps):
    g = fp.LipschitzCNN(2, (5, 6), activation=Arctan)
    x, change = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)

    def trace(x):
        return fp.Branch.of(g, None).linearize(x).trace()

    with torch.autograd.forward_ad.dual_level():
        pushed = torch.autograd.forward_ad.unpack_dual(trace(torch.autograd.forward_ad.make_dual(x, change)))
    wanted = torch.func.jvp(trace, (x,), (change,))[1]
    torch.testing.assert_close(pushed.tangent, wanted, atol=1e4 * eps, rtol=1e4 * eps)


@pytest.mark.parametrize("name", ["3-1-3", "5-1-3", "2-1-4", "3-4", "preactivation"])
def test_values_are_alike_to_the_bit_with_a_graph_and_without(name):
    """A reentrant checkpoint makes its first pass without."""
    branch, x = fp.Branch.of(made(name), None), torch.randn(3, 2, 5, 4)
    value, kept = branch(x), x.clone()
    with torch.no_grad():
        assert torch.equal(branch(x), value)
        assert torch.equal(branch.linearize(x).y, value)
    assert value.requires_grad
    assert branch(x).requires_grad
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", NO_TRACE)
def test_networks_of_unknown_trace(name):
    assert fp.Branch.of(made(name), None).linearize(torch.randn(2, 2, 4, 4)).trace() is None


@pytest.mark.parametrize("name", [name for name in ALL if name != "sorted"])
def test_products_walk_no_graph(name, monkeypatch):
    """The series of a step differentiates nothing; only the loss is."""
    transform = fp.ResidualTransform(made(name))

    def refuse(*arguments, **keywords):
        raise AssertionError("a graph was walked")

    if name not in ("preactivation without frequency", "preactivation, twice as wide", "3-4"):  # by autograd
        monkeypatch.setattr(torch.autograd, "grad", refuse)
    transform(torch.randn(8, 2, 5, 5))


def test_the_trace_in_half_precision_is_summed_in_single(users_defaults):
    g, x = fp.LipschitzCNN(1, (16, 16)), torch.randn(4, 1, 24, 24)
    exact = fp.Branch.of(g, None).linearize(x).trace()
    with torch.autocast("cpu", torch.bfloat16):
        trace = fp.Branch.of(g, None).linearize(x).trace()
    assert trace.dtype == torch.float32
    torch.testing.assert_close(trace, exact, atol=0.02 * float(exact.detach().abs().max()), rtol=0)


class TestPreactivation:
    def test_the_network_starts_with_its_activation(self, eps):
        g, x = fp.LipschitzCNN(2, (4,), preactivation=True, activation=fp.LipSwish), torch.randn(3, 2, 4, 4)
        first, last = g.layers
        weights = g.bounded_weights()
        hidden = g.activations[0](first.affine(g.entry(x), weights[0], first.bias))
        torch.testing.assert_close(g(x), last.affine(hidden, weights[1], last.bias), atol=10 * eps, rtol=10 * eps)
        assert len(g.activations) == 1

    def test_states_of_networks_without_load_as_before(self):
        assert not any("entry" in name for name in fp.LipschitzCNN(2).state_dict())

    @pytest.mark.parametrize("norm", [fp.Gram(), fp.InfNorm(), fp.PathNorm()], ids=str)
    def test_its_bound_is_that_of_the_layers(self, norm):
        plain = fp.lipschitz_bound(fp.LipschitzCNN(2, (4,), norm=norm))
        bound = fp.lipschitz_bound(fp.LipschitzCNN(2, (4,), norm=norm, preactivation=True))
        assert (bound.domain, bound.limit) == (plain.domain, plain.limit)
        assert float(bound) <= 0.97 * 1.001

    def test_an_activation_that_ends_a_bound_counts(self):
        class Half(fp.LipSwish):
            def forward(self, x):
                return super().forward(x) / 2

            def derivative(self, x):
                return super().derivative(x) / 2

            def linearize(self, x):
                return tuple(part / 2 for part in super().linearize(x))

        fp.lipschitz_bound.register(Half, lambda module: fp.LipschitzBound(0.5, elementwise=True, limit=0.5))
        g = fp.LipschitzCNN(2, (), preactivation=True, activation=Half)
        assert float(fp.lipschitz_bound(g)) == pytest.approx(0.97 / 2, rel=1e-3)

    def test_an_activation_above_1_is_refused(self):
        with pytest.raises(fp.LipschitzError, match="ELU has the bound 2"):
            fp.LipschitzCNN(2, (), preactivation=True, activation=lambda: nn.ELU(alpha=2.0))
