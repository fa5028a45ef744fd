"""The log-det that is used when none is asked for."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import flowplug as fp
from cases import residual
from flowplug.logdet import default_logdet


class TestDefaults:
    def spread(self, transform, x):
        return float((transform(x)[1] - transform(x)[1]).detach().abs().max())

    def test_exact_in_low_dimension(self):
        assert self.spread(residual(event=2).train(), torch.randn(4, 2)) == 0

    def test_stochastic_in_train_mode_above_and_exact_in_eval_mode(self, eps):
        x = torch.randn(4, 100)
        transform = fp.ResidualTransform(fp.LipschitzMLP(100, (100,)))
        assert self.spread(transform.train(), x) > 0
        oracle = fp.ResidualTransform(transform.g, logdet=fp.ExactLogDet())
        torch.testing.assert_close(transform.eval()(x)[1], oracle(x)[1].detach(), atol=100 * eps, rtol=0)

    def test_eval_mode_repeats_its_estimate_in_high_dimension(self):
        transform, x = fp.ResidualTransform(fp.LipschitzMLP(300, (300,))).eval(), torch.randn(4, 300)
        exact = fp.ResidualTransform(transform.g, logdet=fp.ExactLogDet())(x)[1].detach()
        ladj = transform(x)[1].detach()
        assert self.spread(transform, x) == 0
        assert float((ladj - exact).abs().max()) > 0

    def test_exact_for_a_narrow_layer(self, eps):
        transform, x = fp.ResidualTransform(fp.LipschitzMLP((1, 28, 28), (16,))), torch.randn(4, 1, 28, 28)
        assert self.spread(transform.train(), x) == 0
        wanted = torch.linalg.slogdet(torch.eye(784) + fp.Branch.of(transform.g, None).jacobian(x)[1])[1]
        torch.testing.assert_close(transform(x)[1], wanted, atol=1e4 * eps, rtol=0)
        assert self.spread(fp.ResidualTransform(fp.LipschitzMLP(784, (65,))).train(), x.flatten(1)) > 0


class Sized(fp.Branch):
    def __init__(self, size):
        self.size = size

    def core_size(self, event):
        return self.size


@pytest.mark.parametrize(
    ("device", "shape", "training", "exact"),
    [
        ("cpu", (7, 8), True, True),
        ("cpu", (7, 9), True, False),
        ("cpu", (7, 2, 8, 8), False, True),
        ("cpu", (7, 129), False, False),
        ("cuda", (512, 64), True, True),
        ("cuda", (513, 64), True, False),
        ("cuda", (7, 3, 4, 4), True, False),
        ("cuda", (7, 2, 2), True, True),
        ("cuda", (7, 65), True, False),
        ("cuda", (99_999, 4), True, True),
        ("cuda", (7, 129), False, False),
        ("cpu", (7, 784, 36), True, True),
        ("cpu", (7, 784, 37), True, False),
        ("cpu", (7, 784, 128), False, True),
        ("cpu", (7, 784, 129), False, False),
        ("cuda", (512, 784, 64), True, True),
        ("cuda", (513, 784, 64), True, False),
        ("cuda", (7, 784, 65), True, False),
    ],
)
def test_the_default_is_exact_where_that_is_cheap(device, shape, training, exact):
    """Of these shapes or, of a row of 784 numbers, for matrices of a narrower layer."""
    *event, size = shape if shape[1] == 784 else (*shape, math.prod(shape[1:]))
    with FakeTensorMode():  # devices that need not be there
        logdet = default_logdet(Sized(size), torch.empty(event, device=device), training=training)
    assert isinstance(logdet, fp.ExactLogDet if exact else fp.Krylov)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rows_of_images_share_lengths_in_small_groups(device):
    with FakeTensorMode():
        table = default_logdet(Sized(784), torch.empty(32, 784, device=device), training=True)
        images = default_logdet(Sized(784), torch.empty(32, 1, 28, 28, device=device), training=True)
    assert (table.terms.group, images.terms.group) == (32, 4)
    assert (images.terms.exact, images.terms.length) == (table.terms.exact, table.terms.length)


def test_convolutions_are_trained_without_and_evaluated_with_their_trace():
    x, branch = torch.empty(32, 1, 28, 28), fp.Branch.of(fp.LipschitzCNN(1, (4, 4)), None)
    assert default_logdet(branch, x, training=True).control is None
    assert default_logdet(branch, x, training=False).control == fp.ExactTrace()
    assert default_logdet(branch, x, training=False).probes.samples == 4
    perceptron = fp.Branch.of(fp.LipschitzMLP((1, 28, 28), (200,)), None)
    assert default_logdet(perceptron, x, training=True).control == fp.ExactTrace()
