"""Networks with every norm and activation: shapes, contexts, budgets, saving, and functional calls."""

import copy
import functools
import io
import math

import pytest
import torch
from torch import nn

import flowplug as fp
from flowplug import Branch

ACTIVATIONS = [
    fp.Sine,
    fp.LipSwish,
    fp.CLipSwish,
    functools.partial(fp.CLipSwish, order=1),
    nn.ELU,
    nn.Softplus,
    nn.Tanh,
    fp.MaxMin,
    fp.FullSort,
    functools.partial(fp.GroupSort, 4),
]
NORMS = [
    fp.PathNorm(),
    fp.InfNorm(),
    fp.OneNorm(),
    fp.Gram(),
    fp.SVD(),
    fp.PowerIteration(),
    fp.LearnedOrder(shared=True),
]
NETWORKS = {
    "MLP": (functools.partial(fp.LipschitzMLP, 3, (8, 8)), (3,)),
    "CNN": (functools.partial(fp.LipschitzCNN, 2, (8, 4)), (2, 4, 4)),
    "DenseNet": (functools.partial(fp.LipschitzDenseNet, 3, (8, 4)), (3,)),
    "DenseNet image": (functools.partial(fp.LipschitzDenseNet, 2, (8, 4), kernel_size=3), (2, 4, 4)),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]


class TestEveryNetwork:
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("norm", NORMS, ids=str)
    def test_every_activation_with_every_norm(self, network, activation, norm):
        make, event = network
        keywords = {"norm": norm, "activation": activation}
        if norm == fp.PathNorm() and make.func is fp.LipschitzDenseNet:
            with pytest.raises(fp.LipschitzError, match="bounds each layer on its own"):
                make(**keywords)
            return
        low = min(1.0 if norm == fp.OneNorm() else 2.0, 1.5 if isinstance(norm, fp.LearnedOrder) else 2.0)
        if isinstance(made := activation(), fp.CLipSwish) and made.order > low:
            with pytest.raises(fp.LipschitzError, match=r"CLipSwish has the bound 1\.\d+ in the 1.*-norm, above 1"):
                make(**keywords)
            return
        g = make(**keywords)
        bound = fp.lipschitz_bound(g)
        assert 0.8 < float(bound) <= 0.97 * 1.005
        jacobian = Branch.of(g, None).jacobian(torch.randn(3, *event))[1].detach()
        order = bound.domain if bound.domain in (1.0, 2.0, math.inf) else 2.0
        if order == bound.domain:
            assert float(torch.linalg.matrix_norm(jacobian, order).max()) <= float(bound) * 1.00001
        transform = fp.ResidualTransform(g, event_dim=len(event))
        y, ladj = transform(torch.randn(2, *event))
        (y.square().sum() - ladj.sum()).backward()
        assert all(bool(p.grad.isfinite().all()) for p in transform.parameters())

    def test_any_batch_shape_and_a_context(self, network, eps):
        make, event = network
        g = make(context_features=2)
        x, context = torch.randn(2, 3, *event), torch.randn(2, 3, 2)
        y = g(x, context)
        assert y.shape == x.shape
        torch.testing.assert_close(g(x[1, 2], context[1, 2]), y[1, 2], atol=10 * eps, rtol=0)
        torch.testing.assert_close(g(x, context[0, 0]), g(x, context[0, 0].expand(2, 3, 2)), atol=10 * eps, rtol=0)
        assert not torch.allclose(g(x, context), g(x, context + 1))
        branch = Branch.of(g, context[0])
        torch.testing.assert_close(
            branch.select(torch.tensor([2, 0]))(x[0, [2, 0]]), y[0, [2, 0]], atol=10 * eps, rtol=0
        )

    def test_the_context_is_not_bounded(self, network):
        make, event = network
        g = make(context_features=2)
        before = fp.lipschitz_bound(g)
        with torch.no_grad():
            g.embedding.weight.mul_(1000)
        assert float(fp.lipschitz_bound(g)) == float(before)
        x = torch.zeros(1, *event)
        assert float((g(x, torch.ones(1, 2)) - g(x, torch.zeros(1, 2))).detach().abs().max()) > 10

    def test_a_last_layer_of_zeros_is_the_identity_and_learns(self, network):
        make, event = network
        for keywords in ({}, {"norm": fp.PowerIteration()}):
            transform = fp.ResidualTransform(make(context_features=2, zero_last=True, **keywords))
            x, context = torch.randn(4, *event), torch.randn(4, 2)
            y, ladj = transform(x, context)
            assert torch.equal(y, x)
            assert not ladj.any()
            optimizer = torch.optim.SGD(transform.parameters(), 0.1)
            for _ in range(2):
                optimizer.zero_grad()
                y, ladj = transform(x, context)
                (y.square().sum() - ladj.sum()).backward()
                optimizer.step()
            assert float((transform(x, context)[0] - x).detach().abs().max()) > 1e-3

    @pytest.mark.parametrize("norm", [fp.Gram(), fp.PowerIteration(), fp.LearnedOrder(shared=True)], ids=str)
    def test_saved_and_copied_flows_give_the_same_bits(self, network, norm):
        make, event = network

        def flow():
            parts = (
                fp.ResidualTransform(make(norm=norm, context_features=2, activation=fp.LipSwish), event_dim=len(event))
                for _ in range(2)
            )
            return fp.ComposedTransform(*parts)

        original, x, context = flow(), torch.randn(4, *event), torch.randn(4, 2)
        optimizer = torch.optim.Adam(original.parameters(), 0.05)
        for _ in range(3):
            y, ladj = original(x, context)
            optimizer.zero_grad()
            (y.square().sum() - ladj.sum()).backward()
            optimizer.step()
        original.eval()
        fresh = flow().eval()
        fresh.load_state_dict(original.state_dict())
        buffer = io.BytesIO()
        torch.save(original, buffer)
        buffer.seek(0)
        twins = (fresh, copy.deepcopy(original), torch.load(buffer, weights_only=False))
        for twin in twins:
            assert all(map(torch.equal, twin(x, context), original(x, context)))
            assert all(map(torch.equal, twin.inverse(x, context), original.inverse(x, context)))

    @pytest.mark.parametrize("norm", [fp.Gram(), fp.PowerIteration(tol=1e-5), fp.LearnedOrder(shared=True)], ids=str)
    def test_functional_call(self, network, norm, eps):
        make, event = network
        make = functools.partial(make, norm=norm, activation=fp.LipSwish)
        g, other, x = make(), make(), torch.randn(4, *event)
        g.eval(), other.eval()
        wanted = other(x)
        values = {**dict(other.named_parameters()), **dict(other.named_buffers())}
        assert torch.equal(torch.func.functional_call(g, values, (x,)), wanted)

        def loss(parameters):
            return torch.func.functional_call(g, parameters, (x,)).square().sum()

        parameters = {name: p.detach() for name, p in g.named_parameters()}
        found = torch.func.grad(loss)(parameters)
        g(x).square().sum().backward()
        for name, p in g.named_parameters():
            torch.testing.assert_close(found[name], p.grad, rtol=1000 * eps, atol=1000 * eps)

    def test_wrong_arguments(self, network):
        make, event = network
        with pytest.raises(fp.LipschitzError, match=r"bound=...\) must be in \(0, 1\)"):
            make(bound=1.0)
        with pytest.raises(fp.ShapeError, match="must not be negative; got -1"):
            make(context_features=-1)
        g = make(context_features=2)
        with pytest.raises(fp.ContextError, match="needs a context of width 2; got none"):
            g(torch.randn(4, *event))
        with pytest.raises(fp.ShapeError, match=r"expects inputs \(\*batch, "):
            g(torch.randn(4, event[0] + 1, *event[1:]), torch.randn(4, 2))
        with pytest.raises(fp.LipschitzError, match="ELU has the bound 2 in every p-norm, above 1"):
            make(activation=lambda: nn.ELU(alpha=2.0))
        with pytest.raises(fp.LipschitzError, match=r"no Lipschitz bound is known for torch.*Dropout"):
            make(activation=nn.Dropout)


class TestCNN:
    def test_one_network_for_images_of_every_size(self):
        transform = fp.ResidualTransform(fp.LipschitzCNN(2, (4, 4)))
        assert transform.event_dim == 3
        for size in ((2, 1, 1), (2, 5, 3)):
            x = torch.randn(2, *size)
            y = transform(x)[0]
            torch.testing.assert_close(transform.inverse(y)[0], x, atol=1e-4, rtol=0)
        with pytest.raises(fp.ShapeError):
            transform(torch.randn(2, 3, 4, 4))

    def test_kernels(self):
        g = fp.LipschitzCNN(2, (4, 4, 4))
        assert [tuple(layer.kernel_size) for layer in g.layers] == [(3, 3), (1, 1), (1, 1), (3, 3)]
        g = fp.LipschitzCNN(2, (4,), kernel_sizes=(5, 1), padding_mode="circular")
        assert [tuple(layer.kernel_size) for layer in g.layers] == [(5, 5), (1, 1)]
        with pytest.raises(fp.ShapeError, match="2 layers and needs as many kernel_sizes; got 1"):
            fp.LipschitzCNN(2, (4,), kernel_sizes=(3,))
        for wrong in ({"channels": 0}, {"hidden_channels": (4, 0)}, {"kernel_sizes": (3, 0, 3)}):
            with pytest.raises(fp.ShapeError, match="positive sizes"):
                fp.LipschitzCNN(**{"channels": 2, **wrong})

    def test_norms_from_p_to_q_are_refused(self):
        for norm in (fp.LearnedOrder(), fp.InducedNorm(1.5, 2)):
            with pytest.raises(fp.LipschitzError, match="depends on the size of the image"):
                fp.LipschitzCNN(2, (4,), norm=norm)


class TestDenseNet:
    @pytest.mark.parametrize("norm", [fp.InfNorm(), fp.OneNorm(), fp.Gram(), fp.LearnedOrder(shared=True)], ids=str)
    def test_the_weights_of_a_concatenation_have_norm_1(self, norm, eps):
        g = fp.LipschitzDenseNet(3, (4, 4), norm=norm, activation=nn.Tanh)
        nn.init.normal_(g.raw_mix)
        order = fp.lipschitz_bound(g).domain
        for mix in g._mixes():
            assert bool((mix > 0).all())
            assert abs(float(torch.linalg.vector_norm(mix.detach(), order)) - 1) <= 100 * eps

    def test_the_weights_are_learned(self):
        g = fp.LipschitzDenseNet(3, (4, 4))
        g(torch.randn(4, 3)).square().sum().backward()
        assert bool(g.raw_mix.grad.any())

    def test_the_certificate_follows_the_weights_in_use(self):
        """Halving a hidden layer leaves the other part of the concatenation."""
        g = fp.LipschitzDenseNet(3, (4,), norm=fp.SVD(), activation=nn.Tanh, bound=0.9)
        old, new = g._mixes()[0].tolist()
        with torch.no_grad():
            g.layers[0].weight.mul_(0.5)
        norms = [float(torch.linalg.matrix_norm(weight, 2).detach()) for weight in g.bounded_weights()]
        assert float(fp.lipschitz_bound(g)) == pytest.approx(math.hypot(old, new * norms[0]) * norms[1])
        assert norms[0] < 0.6

    def test_norms_from_p_to_q_are_refused(self):
        for norm in (fp.LearnedOrder(), fp.InducedNorm(1.5, 2)):
            with pytest.raises(fp.LipschitzError, match=r"use one norm for both|different norms"):
                fp.LipschitzDenseNet(3, (4,), norm=norm, activation=nn.Tanh)

    def test_wrong_sizes(self):
        for wrong in ({"features": 0}, {"hidden_features": (0,)}, {"kernel_size": 0}):
            with pytest.raises(fp.ShapeError, match="positive sizes"):
                fp.LipschitzDenseNet(**{"features": 2, **wrong})
