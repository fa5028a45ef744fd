"""Networks with every norm and activation: shapes, contexts, budgets, saving, and functional calls."""

import copy
import functools
import io
import math

import pytest
import torch
from torch import nn

import flowplug as fp

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


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_every_activation_with_every_norm(network, activation, norm):
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
    jacobian = fp.Branch.of(g, None).jacobian(torch.randn(3, *event))[1].detach()
    order = bound.domain if bound.domain in (1.0, 2.0, math.inf) else 2.0
    if order == bound.domain:
        assert float(torch.linalg.matrix_norm(jacobian, order).max()) <= float(bound) * 1.00001
    transform = fp.ResidualTransform(g, event_dim=len(event))
    y, ladj = transform(torch.randn(2, *event))
    (y.square().sum() - ladj.sum()).backward()
    assert all(bool(p.grad.isfinite().all()) for p in transform.parameters())


def test_any_batch_shape_and_a_context(network, eps):
    make, event = network
    g = make(context_features=2)
    x, context = torch.randn(2, 3, *event), torch.randn(2, 3, 2)
    y = g(x, context)
    assert y.shape == x.shape
    torch.testing.assert_close(g(x[1, 2], context[1, 2]), y[1, 2], atol=10 * eps, rtol=0)
    torch.testing.assert_close(g(x, context[0, 0]), g(x, context[0, 0].expand(2, 3, 2)), atol=10 * eps, rtol=0)
    assert not torch.allclose(g(x, context), g(x, context + 1))
    branch = fp.Branch.of(g, context[0])
    torch.testing.assert_close(branch.select(torch.tensor([2, 0]))(x[0, [2, 0]]), y[0, [2, 0]], atol=10 * eps, rtol=0)


def test_the_context_is_not_bounded(network):
    make, event = network
    g = make(context_features=2)
    before = fp.lipschitz_bound(g)
    with torch.no_grad():
        g.embedding.weight.mul_(1000)
    assert float(fp.lipschitz_bound(g)) == float(before)
    x = torch.zeros(1, *event)
    assert float((g(x, torch.ones(1, 2)) - g(x, torch.zeros(1, 2))).detach().abs().max()) > 10


def test_a_last_layer_of_zeros_is_the_identity_and_learns(network):
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
def test_saved_and_copied_flows_give_the_same_bits(network, norm):
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
def test_functional_call(network, norm, eps):
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


def test_wrong_arguments(network):
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


@pytest.mark.parametrize("activation", [nn.Tanh(), "relu", None])
def test_an_activation_is_made_not_given(activation):
    with pytest.raises(TypeError, match=r"activation=\.\.\. must make a module"):
        fp.LipschitzMLP(3, activation=activation)
