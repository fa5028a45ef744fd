"""Whitening: initialised once, by the first batch in train mode, with all of its state in buffers."""

import copy

import numpy as np
import pytest
import torch
from sklearn.covariance import OAS

import flowplug as fp


def data(rows, features=4):
    return 5 + torch.randn(rows, features) @ (torch.eye(features) + 0.3 * torch.randn(features, features))


def test_the_first_batch_is_whitened(eps):
    whitening, x = fp.Whitening(4), data(5000)
    y, ladj = whitening(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(4), atol=1e4 * eps, rtol=0)
    torch.testing.assert_close(y.T @ y / len(x), torch.eye(4), atol=0.02, rtol=0)
    jacobian = torch.autograd.functional.jacobian(whitening, x[0])[0]
    torch.testing.assert_close(ladj, torch.linalg.slogdet(jacobian).logabsdet.expand(5000), atol=0, rtol=1e4 * eps)


@pytest.mark.parametrize("rows", [3, 20, 1000])
def test_the_covariance_is_that_of_scikit_learn(rows, eps):
    whitening, x = fp.Whitening(4), data(rows)
    whitening(x)
    wanted = OAS().fit(x.double().cpu().numpy()).covariance_
    scale = np.linalg.inv(whitening.weight.double().cpu().numpy())
    np.testing.assert_allclose(scale @ scale, wanted, rtol=1e5 * eps, atol=1e5 * eps * np.trace(wanted))
    torch.testing.assert_close(whitening.weight @ whitening.inverse_weight, torch.eye(4), atol=1e4 * eps, rtol=0)


@pytest.mark.parametrize("features", [1, 2, 3, 5])
def test_equal_variances(features, eps):
    """Rounding leaves their difference on either side of 0."""
    for scale in torch.linspace(0.1, 3, 50):
        whitening = fp.Whitening(features)
        x = scale * torch.cat([torch.eye(features), -torch.eye(features)])
        y, ladj = whitening(x)
        torch.testing.assert_close(y, x * features**0.5 / scale, atol=100 * eps, rtol=0)
        torch.testing.assert_close(ladj[0], features * (features**0.5 / scale).log(), atol=100 * eps, rtol=100 * eps)


def test_fewer_rows_than_features():
    whitening, x = fp.Whitening(30), data(5, 30)
    y, ladj = whitening(x)
    assert bool(y.isfinite().all())
    assert bool(ladj.isfinite().all())


@pytest.mark.parametrize("rows", [1, 10])
def test_equal_rows_keep_their_scale(rows):
    whitening = fp.Whitening(3)
    y, ladj = whitening(torch.tensor([[1e6 / 3, -2.0, 0.1]]).expand(rows, 3))
    assert bool((y.abs() < 1).all())
    assert not ladj.any()


def test_second_batch_changes_nothing():
    whitening, x = fp.Whitening(4), data(50)
    first = whitening(x)
    whitening(100 * x)
    assert torch.equal(whitening(x)[0], first[0])


def test_only_forward_in_train_mode_initialises():
    whitening, x = fp.Whitening(4).eval(), data(50)
    assert torch.equal(whitening(x)[0], x)
    whitening.inverse(x)
    with torch.no_grad():
        whitening.train().inverse(x)
    whitening(x[:0])
    assert not whitening.initialized
    whitening(x)
    assert whitening.initialized


def test_training_that_starts_with_the_inverse_keeps_the_map():
    whitening, y = fp.Whitening(4), data(50).requires_grad_()
    x, ladj = whitening.inverse(y)
    torch.testing.assert_close(whitening(x.detach()), (y.detach(), -ladj.detach()))
    x.sum().backward()


def test_loading_into_a_fresh_module_in_train_mode_keeps_the_state():
    whitening, x = fp.Whitening(4), data(50)
    wanted = whitening(x)[0]
    fresh = fp.Whitening(4)
    fresh.load_state_dict(whitening.state_dict())
    fresh(7 * x)
    assert torch.equal(fresh(x)[0], wanted)
    assert torch.equal(copy.deepcopy(whitening)(x)[0], wanted)


def test_statistics_are_buffers_that_stay_in_place():
    whitening = fp.Whitening(4)
    assert not list(whitening.parameters())
    before = {name: id(buffer) for name, buffer in whitening.named_buffers()}
    assert set(before) == {"mean", "weight", "inverse_weight", "log_det", "initialized"}
    whitening(data(50))
    assert {name: id(buffer) for name, buffer in whitening.named_buffers()} == before


def test_bad_input():
    with pytest.raises(fp.ShapeError, match="at least 1 feature; got 0"):
        fp.Whitening(0)
    with pytest.raises(fp.ShapeError):
        fp.Whitening(3)(torch.randn(4, 2))
