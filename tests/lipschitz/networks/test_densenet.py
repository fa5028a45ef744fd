"""Dense networks: concatenations whose weights are learned, at norm 1."""

import math

import pytest
import torch
from torch import nn

import flowplug as fp


@pytest.mark.parametrize("norm", [fp.InfNorm(), fp.OneNorm(), fp.Gram(), fp.LearnedOrder(shared=True)], ids=str)
def test_the_weights_of_a_concatenation_have_norm_1(norm, eps):
    g = fp.LipschitzDenseNet(3, (4, 4), norm=norm, activation=nn.Tanh)
    nn.init.normal_(g.raw_mix)
    order = fp.lipschitz_bound(g).domain
    for mix in g.mixes():
        assert bool((mix > 0).all())
        assert abs(float(torch.linalg.vector_norm(mix.detach(), order)) - 1) <= 100 * eps


def test_the_weights_are_learned():
    g = fp.LipschitzDenseNet(3, (4, 4))
    g(torch.randn(4, 3)).square().sum().backward()
    assert bool(g.raw_mix.grad.any())


def test_the_certificate_follows_the_weights_in_use():
    """Halving a hidden layer leaves the other part of the concatenation."""
    g = fp.LipschitzDenseNet(3, (4,), norm=fp.SVD(), activation=nn.Tanh, bound=0.9)
    old, new = g.mixes()[0].tolist()
    with torch.no_grad():
        g.layers[0].weight.mul_(0.5)
    norms = [float(torch.linalg.matrix_norm(weight, 2).detach()) for weight in g.bounded_weights()]
    assert float(fp.lipschitz_bound(g)) == pytest.approx(math.hypot(old, new * norms[0]) * norms[1])
    assert norms[0] < 0.6


def test_norms_from_p_to_q_are_refused():
    for norm in (fp.LearnedOrder(), fp.InducedNorm(1.5, 2)):
        with pytest.raises(fp.LipschitzError, match=r"use one norm for both|different norms"):
            fp.LipschitzDenseNet(3, (4,), norm=norm, activation=nn.Tanh)


def test_wrong_sizes():
    for wrong in ({"features": 0}, {"hidden_features": (0,)}, {"kernel_size": 0}):
        with pytest.raises(fp.ShapeError, match="positive sizes"):
            fp.LipschitzDenseNet(**{"features": 2, **wrong})


def concatenated(g, x, context):
    """The network as its formula has it."""
    weights, shifts = g.bounded_weights(), g.shifts(context)
    for weight, shift, activation, (old, new) in zip(weights, shifts, g.activations, g.mixes(), strict=False):
        x = torch.cat([old * x, new * activation(x @ weight.T + shift)], dim=1)
    return x @ weights[-1].T + shifts[-1]


ACTIVATIONS = [fp.CLipSwish, fp.LipSwish, fp.SineHuber, nn.Tanh, lambda: fp.FullSort()]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(4, 6), (5,)])
class TestBranch:
    """Products of any order in closed form, or by autograd, are those of the formula."""

    def make(self, hidden, activation):
        g = fp.LipschitzDenseNet(3, hidden, context_features=2, activation=activation)
        for parameter in g.parameters():
            nn.init.normal_(parameter)
        return g, torch.randn(5, 3), torch.randn(5, 2), [torch.randn(5, 3) for _ in range(2)]

    def test_products_and_their_gradients(self, hidden, activation, eps):
        g, x, context, (v, w) = self.make(hidden, activation)
        x.requires_grad_()
        y = concatenated(g, x, context)
        (product,) = torch.autograd.grad(y, x, v, create_graph=True)
        linear = fp.Branch.of(g, context).linearize(x)
        found = linear.vjp(v, create_graph=True)
        assert not linear.vjp(v).requires_grad
        torch.testing.assert_close((linear.y, found, g(x, context)), (y, product, y), atol=50 * eps, rtol=50 * eps)
        sources = [x, *g.parameters()]
        wanted, got = (
            torch.autograd.grad((value * v + made * w).sum(), sources, allow_unused=True, materialize_grads=True)
            for value, made in ((y, product), (linear.y, found))
        )
        torch.testing.assert_close(got, wanted, atol=500 * eps, rtol=500 * eps)

    def test_rows_and_matrices(self, hidden, activation, eps):
        g, x, context, (v, _) = self.make(hidden, activation)
        wanted = torch.stack(
            [
                torch.autograd.functional.jacobian(lambda at, c=c: concatenated(g, at[None], c[None])[0], row)
                for row, c in zip(x, context, strict=True)
            ]
        )
        branch, index = fp.Branch.of(g, context), torch.tensor([3, 1], device=x.device)
        torch.testing.assert_close(branch.jacobian(x)[1], wanted, atol=50 * eps, rtol=50 * eps)
        selected = branch.linearize(x).select(index)
        product = (v[index].unsqueeze(1) @ wanted[index]).squeeze(1)
        torch.testing.assert_close(selected.vjp(v[index]), product, atol=50 * eps, rtol=50 * eps)


def test_products_of_the_default_walk_no_graph(monkeypatch):
    """The series of a step differentiates nothing; only the loss is."""
    logdet = fp.PowerSeries()
    transform = fp.ResidualTransform(fp.LipschitzDenseNet(3, (4, 4)), logdet=logdet)

    def refuse(*arguments, **keywords):
        raise AssertionError("a graph was walked")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    transform(torch.randn(64, 3))


def test_a_subclass_of_the_activation_keeps_its_own_derivative(eps):
    class Halved(fp.CLipSwish):
        def forward(self, x):
            return 0.5 * super().forward(x)

    fp.lipschitz_bound.register(Halved, lambda module: fp.LipschitzBound(0.5, 2.0, limit=0.5))
    g, x, v = fp.LipschitzDenseNet(3, (4,), activation=Halved), torch.randn(5, 3), torch.randn(5, 3)
    _, pull = torch.func.vjp(g, x)
    torch.testing.assert_close(fp.Branch.of(g, None).linearize(x).vjp(v), pull(v)[0], atol=50 * eps, rtol=0)


def test_weights_of_all_layers_are_measured_together(monkeypatch):
    """Of layers with different shapes and bounds, whose Gram matrices are of two sizes."""
    sizes, powers = [], fp.Gram._relative
    monkeypatch.setattr(fp.Gram, "_relative", lambda self, gram: sizes.append(gram.shape) or powers(self, gram))
    g = fp.LipschitzDenseNet(3, (8, 8, 8))
    sizes.clear()
    weights = g.bounded_weights()
    assert sorted(sizes) == [(2, 3, 3), (2, 8, 8)]
    for layer, weight in zip(g.layers, weights, strict=True):
        torch.testing.assert_close(weight, layer.bounded_weight())
