"""How matrices and kernels start."""

import math

import pytest
import torch

import flowplug as fp


def test_scaled_identity():
    assert torch.equal(fp.DenseTransform(3, init=fp.ScaledIdentity(-0.5)).weight, -0.5 * torch.eye(3))
    kernel = fp.CircularConv2d(3, 4, init=fp.ScaledIdentity(2.0)).weight
    assert torch.equal(kernel[:, :, 1, 1], 2 * torch.eye(3))
    assert float(kernel.abs().sum().detach()) == 6


def test_orthogonal_is_the_default(eps):
    weight = fp.DenseTransform(5).weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(5), atol=100 * eps, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fp.ScaledIdentity(0.0), "finite and not 0; got 0.0"),
        (lambda: fp.ScaledIdentity(math.nan), "finite and not 0; got nan"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()
