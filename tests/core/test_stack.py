"""The recommended residual flow: its parts, and that options reach every one of them."""

import pytest
import torch
from torch import nn

import flowplug as fp


def make(**keywords):
    return fp.ResidualStack(3, 2, (8,), **keywords)


def residuals(stack):
    return [part for part in stack.transforms if isinstance(part, fp.ResidualTransform)]


@pytest.mark.parametrize("transforms", [1, 3])
def test_linear_parts_before_each_residual_one_and_an_act_norm_behind(transforms):
    stack = fp.ResidualStack(3, transforms)
    kinds = [fp.Whitening, fp.DenseTransform, fp.ResidualTransform] * transforms
    assert [type(part) for part in stack.transforms] == [*kinds, fp.ActNorm]
    assert isinstance(stack, fp.ComposedTransform)
    for part in stack.transforms:
        if isinstance(part, fp.DenseTransform):
            assert torch.equal(part.weight, torch.eye(3))
            assert part.activation is None


@pytest.mark.parametrize("context_features", [0, 2])
def test_event_and_context(context_features):
    stack = make(context_features=context_features)
    assert (stack.event_dim, stack.event_shape, stack.context_features) == (1, (3,), context_features)
    assert [part.context_features for part in residuals(stack)] == [context_features] * 2
    context = torch.randn(5, 2, requires_grad=True)
    y, ladj = stack(torch.randn(7, 5, 3), context)
    assert y.shape == (7, 5, 3)
    assert ladj.shape == (7, 5)
    (y.square().sum() - ladj.sum()).backward()
    assert (context.grad is not None) == bool(context_features)
    with pytest.raises(fp.ShapeError, match=r"event \(3,\)"):
        stack(torch.randn(5, 4), context)


def test_options_reach_every_part():
    options = {"logdet": fp.ExactLogDet(), "eval_logdet": fp.Krylov(), "solver": fp.FixedPoint()}
    stack = fp.ResidualStack(3, 3, (8, 7), bound=0.8, norm=fp.Gram(), activation=fp.LipSwish, **options)
    assert len(residuals(stack)) == 3
    for part in residuals(stack):
        assert {name: getattr(part, name) for name in options} == options
        assert [layer.weight.shape[0] for layer in part.g.layers] == [8, 7, 3]
        assert all(type(activation) is fp.LipSwish for activation in part.g.activations)
        assert part.lipschitz.domain == 2.0
        assert 0.75 < float(part.lipschitz) <= 0.8 * 1.00001
    assert len({id(part.g) for part in residuals(stack)}) == 3


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"transforms": 0}, ValueError, r"ResidualStack\(transforms=...\) must be at least 1; got 0"),
        ({"bound": 1.0}, fp.LipschitzError, r"must be in \(0, 1\)"),
        ({"features": 0}, fp.ShapeError, "positive sizes; got features=0"),
        ({"activation": nn.Dropout}, fp.LipschitzError, "Dropout"),
        ({"misspelt": 1}, TypeError, "misspelt"),
    ],
)
def test_bad_values(keywords, error, message):
    with pytest.raises(error, match=message):
        fp.ResidualStack(**{"features": 3, **keywords})


def test_learns(eps):
    stack = make()
    x = torch.randn(200, 3) @ torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.2]]) + 5
    x[:, 2] += x[:, 0].sin()
    optimizer, losses = torch.optim.Adam(stack.parameters(), 0.01), []
    for _ in range(60):
        y, ladj = stack(x)
        loss = (y.square().sum(1) / 2 - ladj).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    with torch.no_grad():
        torch.testing.assert_close(stack.inverse(stack(x)[0])[0], x, atol=1e5 * eps, rtol=1e5 * eps)
