"""Whitening: started once, from the first rows in train mode, with all of its state in buffers."""

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
def test_the_correlation_is_that_of_scikit_learn(rows, eps):
    whitening, x = fp.Whitening(4), data(rows)
    whitening(x)
    std = x.std(0, correction=0)
    wanted = OAS().fit((x / std).double().cpu().numpy()).covariance_
    scale = np.linalg.inv((std[:, None] * whitening.weight).double().cpu().numpy())
    np.testing.assert_allclose(scale @ scale, wanted, rtol=1e5 * eps, atol=1e5 * eps)


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
    whitening, x = fp.Whitening(4), data(128)
    first = whitening(x)
    whitening(100 * x)
    assert torch.equal(whitening(x)[0], first[0])


def test_only_forward_in_train_mode_starts():
    whitening, x = fp.Whitening(4).eval(), data(128)
    assert torch.equal(whitening(x)[0], x)
    whitening.inverse(x)
    with torch.no_grad():
        whitening.train().inverse(x)
    whitening(x[:0])
    assert whitening.started == 0
    whitening(x)
    assert whitening.started == 1


def test_training_that_starts_with_the_inverse_keeps_the_map():
    whitening, y = fp.Whitening(4), data(128).requires_grad_()
    x, ladj = whitening.inverse(y)
    torch.testing.assert_close(whitening(x.detach()), (y.detach(), -ladj.detach()))
    x.sum().backward()


def test_loading_into_a_fresh_module_in_train_mode_keeps_the_state():
    whitening, x = fp.Whitening(4), data(128)
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
    assert set(before) == {"mean", "weight", "spread", "correlation", "started"}
    whitening(data(128))
    assert {name: id(buffer) for name, buffer in whitening.named_buffers()} == before


def follows(whitening, x):
    """Log-det and inverse are those of the map that is."""
    units = 1e4 * torch.finfo(x.dtype).eps
    with torch.no_grad():
        y, ladj = whitening(x)
        back, inverse_ladj = whitening.inverse(y)
    torch.testing.assert_close(
        ladj, torch.linalg.slogdet(whitening.weight).logabsdet.expand(len(x)), atol=units, rtol=0
    )
    torch.testing.assert_close(inverse_ladj, -ladj, atol=units, rtol=0)
    torch.testing.assert_close(back, x, atol=units, rtol=units)


@pytest.mark.parametrize("write", ["lerp", "data", "load", "half"])
def test_one_truth_whatever_is_written(write):
    whitening, other, x = fp.Whitening(4), fp.Whitening(4), data(200)
    whitening(x)
    other(3 * x)
    follows(whitening.eval(), x)  # fills what could be kept
    if write == "lerp":  # an average of weights, or a soup
        for name, value in whitening.state_dict().items():
            value.lerp_(other.state_dict()[name], 0.5)
    elif write == "data":
        whitening.weight.data.mul_(3.0)
    elif write == "load":
        whitening.load_state_dict(other.state_dict())
    else:  # a checkpoint in low precision
        whitening.load_state_dict({name: value.bfloat16() for name, value in whitening.state_dict().items()})
    follows(whitening, x)


@pytest.mark.parametrize("row", [0, 1])
def test_a_change_is_seen_in_whatever_units(row):
    whitening, x = fp.Whitening(2), torch.randn(200, 2) * torch.tensor([1e-12, 1e12])
    ladj = whitening(x)[1]
    whitening.weight.data[row] *= 3
    torch.testing.assert_close(whitening(x)[1], ladj + np.log(3))
    torch.testing.assert_close(whitening.inverse(whitening(x)[0])[0][:, row], x[:, row], atol=0, rtol=1e-2)
    whitening.weight.data[:, 1 - row] = 0.5 * whitening.weight.data[:, row]  # no change of the largest in this row
    whitening.weight.data[1 - row, 1 - row] *= -3
    wanted = torch.linalg.slogdet(whitening.weight.double() * torch.tensor([[1e-12], [1e12]]).double()).logabsdet
    torch.testing.assert_close(whitening(x)[1][0].double(), wanted, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("users_defaults")
def test_autocast_costs_no_digits():
    whitening, x = fp.Whitening(4), 1e3 + data(200)
    wanted = whitening(x)
    with torch.autocast("cpu", torch.bfloat16):
        y, ladj = fp.Whitening(4)(x)
        torch.testing.assert_close((y, ladj), wanted)
        torch.testing.assert_close(whitening.inverse(y)[0], x)


@pytest.mark.usefixtures("users_defaults")
def test_half_precision():
    whitening, x = fp.Whitening(4).bfloat16(), data(1000).bfloat16()
    y, ladj = whitening(x)
    assert (y.dtype, ladj.dtype) == (torch.bfloat16, torch.bfloat16)
    torch.testing.assert_close(y.float().std(0), torch.ones(4), atol=0.05, rtol=0)
    torch.testing.assert_close(whitening.inverse(y)[0].float(), x.float(), atol=0.2, rtol=0.05)


def test_ensembles_under_vmap():
    members = [fp.Whitening(4) for _ in range(3)]
    for scale, member in enumerate(members, 1):
        member(scale * data(200))
    _, buffers = torch.func.stack_module_state(members)
    x = data(5)

    def run(buffers):
        y, ladj = torch.func.functional_call(members[0], buffers, (x,))
        return y, ladj

    y, ladj = torch.vmap(run)(buffers)
    for index, member in enumerate(members):
        torch.testing.assert_close((y[index], ladj[index]), member(x))


def test_bad_input():
    with pytest.raises(fp.ShapeError, match="at least 1 feature; got 0"):
        fp.Whitening(0)
    with pytest.raises(fp.ShapeError):
        fp.Whitening(3)(torch.randn(4, 2))


def test_the_repr_has_the_width():
    assert repr(fp.Whitening(4)) == "Whitening(4)"
