"""Bounds of transforms as maps: above the norm of their Jacobians, and products along what is composed of them."""

import pytest
import torch
from torch import nn

import flowplug as fp
from helpers import Matrix


def jacobians(transform, x):
    return torch.stack(
        [torch.autograd.functional.jacobian(lambda row: transform(row[None])[0].flatten(), row).flatten(1) for row in x]
    )


def started(transform, x):
    transform.start(3 + 2 * torch.randn(200, *x.shape[1:]) * torch.linspace(0.5, 3, x[0].numel()).reshape(x.shape[1:]))
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return transform.eval()


def image_net():
    parts = [fp.ActNorm(1, event_dim=3), fp.ResidualTransform(fp.LipschitzCNN(1, (8,)))]
    parts += [
        fp.Squeeze(),
        fp.DenseConv1x1(4),
        fp.ResidualTransform(fp.LipschitzCNN(4, (8,))),
        fp.Reshape((4, 1, 2), 8),
    ]
    return fp.ComposedTransform(*parts, fp.Whitening(8))


ROWS = {
    "residual": (lambda: fp.ResidualTransform(fp.LipschitzMLP(3, (8,), norm=fp.Gram())), (3,)),
    "residual linear": (lambda: fp.ResidualTransform(Matrix(0.3 * torch.eye(3), 2)), (3,)),
    "actnorm": (lambda: fp.ActNorm(3), (3,)),
    "actnorm image": (lambda: fp.ActNorm(2, event_dim=3), (2, 2, 2)),
    "whitening": (lambda: fp.Whitening(3), (3,)),
    "smooth": (lambda: fp.SmoothLeakyReLU(0.3), (3,)),
    "tanh": (lambda: fp.TanhLinear(2.0, 0.1), (3,)),
    "dense": (lambda: fp.DenseTransform(3, activation=None), (3,)),
    "dense activation": (lambda: fp.DenseTransform(3, activation=fp.TanhLinear(2.0, 0.1)), (3,)),
    "conv 1x1": (lambda: fp.DenseConv1x1(2), (2, 2, 2)),
    "squeeze": (lambda: fp.Squeeze(), (1, 2, 4)),
    "reshape": (lambda: fp.Reshape((1, 2, 4), 8), (1, 2, 4)),
    "composed": (image_net, (1, 2, 4)),
}


@pytest.mark.parametrize("name", ROWS)
def test_is_above_the_norm_of_the_jacobian(name, eps):
    make, event = ROWS[name]
    x = torch.randn(5, *event)
    transform = started(make(), x)
    bound = fp.lipschitz_bound(transform)
    assert bound.domain in (None, 2)
    matrices = jacobians(transform, x)
    for order in (2,) if bound.domain == 2 else (1, 2, float("inf")):
        largest = float(torch.linalg.matrix_norm(matrices, order).max())
        assert largest <= float(bound) * (1 + 100 * eps)
    if name not in ("composed", "residual", "residual linear", "tanh", "smooth", "dense activation", "conv 1x1"):
        assert float(bound) == pytest.approx(largest, rel=1e-3)


def test_values():
    assert str(fp.lipschitz_bound(fp.Squeeze())) == "1 in every p-norm"
    assert str(fp.lipschitz_bound(fp.Reshape(4, (2, 2)))) == "1 in every p-norm"
    g = fp.LipschitzMLP(3, bound=0.9)
    transform = fp.ResidualTransform(g)
    bound, inner = fp.lipschitz_bound(transform), fp.lipschitz_bound(g)
    assert float(bound) == pytest.approx(1 + float(inner))
    assert (bound.domain, bound.limit) == (inner.domain, 1 + inner.limit)
    twice = fp.lipschitz_bound(fp.ComposedTransform(transform, fp.ResidualTransform(g)))
    assert float(twice) == pytest.approx(float(bound) ** 2)


def test_a_whole_classifier():
    flow = image_net()
    flow.transforms.pop(-1)
    flow.start(torch.randn(100, 1, 2, 4))
    head = nn.Sequential(nn.Unflatten(-1, (4, 1, 2)), nn.AvgPool2d((1, 2)), nn.Flatten(), nn.ReLU(), nn.Linear(4, 10))
    bound = fp.lipschitz_bound(nn.Sequential(flow, head))
    assert float(bound) == pytest.approx(float(fp.lipschitz_bound(flow)) * float(fp.lipschitz_bound(head)))
    a, b = torch.randn(2, 500, 1, 2, 4)
    moved = (head(flow(a)[0]) - head(flow(b)[0])).norm(dim=1)
    assert (moved <= float(bound) * (a - b).flatten(1).norm(dim=1)).all()


def test_has_a_gradient():
    norm = fp.ActNorm(3)
    flow = fp.ComposedTransform(norm, fp.ResidualTransform(fp.LipschitzMLP(3)))
    fp.lipschitz_bound(flow).value.backward()
    assert norm.log_scale.grad.any()


class Doubled(fp.ActNorm):
    def _forward(self, x, context):
        y, ladj = super()._forward(x, context)
        return 2 * y, ladj


class Backwards(fp.ComposedTransform):
    def _through(self, x, call):
        return x, x.new_zeros(x.shape[:-1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Doubled(3), "Doubled replaces the _forward of ActNorm"),
        (lambda: Backwards(fp.ActNorm(3)), "Backwards replaces the _through of ComposedTransform"),
        (lambda: fp.ComposedTransform(fp.Squeeze(), fp.Logit()), r"no Lipschitz bound is known for .*Logit"),
        (
            lambda: fp.ComposedTransform(fp.Whitening(3), fp.ResidualTransform(fp.LipschitzMLP(3, norm=fp.InfNorm()))),
            "the parts of ComposedTransform are bounded in different norms",
        ),
    ],
)
def test_what_has_none_is_refused(make, message):
    with pytest.raises(fp.LipschitzError, match=message):
        fp.lipschitz_bound(make())
