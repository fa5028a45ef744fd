"""ActNorm: started once, from the first rows in train mode, with all of its state in buffers."""

import copy

import pytest
import torch

import flowplug as fp


def data(*shape):
    return 5 + 3 * torch.randn(*shape)


@pytest.mark.parametrize(("features", "event"), [(4, (4,)), (2, (2, 3, 5))])
def test_first_batch_is_standardised_per_feature(features, event, eps):
    norm, x = fp.ActNorm(features, event_dim=len(event)), data(200, *event)
    y, ladj = norm(x)
    values = y.detach().movedim(1, 0).flatten(1)
    torch.testing.assert_close(values.mean(1), torch.zeros(features), atol=1000 * eps, rtol=0)
    torch.testing.assert_close(values.std(1, correction=0), torch.ones(features), atol=1000 * eps, rtol=0)
    std = x.movedim(1, 0).flatten(1).std(1, correction=0)
    pixels = x[0, 0].numel()
    torch.testing.assert_close(ladj, (-pixels * std.log().sum()).expand(200), atol=0, rtol=100 * eps)


def test_second_batch_changes_nothing():
    norm, x = fp.ActNorm(4), data(64, 4)
    first = norm(x)
    norm(100 * x)
    assert torch.equal(norm(x)[0], first[0])


def test_only_forward_in_train_mode_starts():
    norm, x = fp.ActNorm(4).eval(), data(64, 4)
    assert torch.equal(norm(x)[0], x)
    norm.inverse(x)
    with torch.no_grad():
        norm.train().inverse(x)
    norm(x[:0])
    assert norm.started == 0
    norm(x)
    assert norm.started == 1


def test_training_that_starts_with_the_inverse_keeps_the_map():
    norm, y = fp.ActNorm(4), data(50, 4)
    x, ladj = norm.inverse(y)
    torch.testing.assert_close(norm(x), (y, -ladj))
    (x.sum() + ladj.sum()).backward()


def test_loading_into_a_fresh_module_in_train_mode_keeps_the_state():
    norm, x = fp.ActNorm(4), data(64, 4)
    wanted = norm(x)[0]
    fresh = fp.ActNorm(4)
    fresh.load_state_dict(norm.state_dict())
    fresh(7 * x)
    assert torch.equal(fresh(x)[0], wanted)
    assert torch.equal(copy.deepcopy(norm)(x)[0], wanted)


def test_statistics_are_buffers_and_what_trains_is_parameters():
    norm = fp.ActNorm(4)
    assert {name for name, _ in norm.named_buffers()} == {"mean", "std", "spread", "started"}
    assert {name for name, _ in norm.named_parameters()} == {"log_scale", "shift"}
    before = {name: id(buffer) for name, buffer in norm.named_buffers()}
    norm(data(50, 4))
    assert {name: id(buffer) for name, buffer in norm.named_buffers()} == before


def test_constant_features_and_single_rows_keep_their_scale():
    norm, x = fp.ActNorm(2), torch.cat([torch.full((10, 1), 3.0), torch.randn(10, 1)], 1)
    y, ladj = norm(x)
    assert bool(y.isfinite().all())
    assert not y[:, 0].any()
    assert bool(ladj.isfinite().all())
    assert not fp.ActNorm(2)(torch.ones(1, 2))[0].any()


def test_bad_input():
    with pytest.raises(fp.ShapeError, match="at least 1; got 0 and 1"):
        fp.ActNorm(0)
    with pytest.raises(fp.ShapeError, match=r"event \(2, None, None\); got shape \(4, 3, 5, 5\)"):
        fp.ActNorm(2, event_dim=3)(torch.randn(4, 3, 5, 5))


def test_the_repr_has_the_width():
    assert repr(fp.ActNorm(4, event_dim=3)) == "ActNorm(4, event_dim=3)"
