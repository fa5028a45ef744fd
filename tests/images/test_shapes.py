"""Transforms that only change the shape: their order of the entries, and their errors."""

import pytest
import torch
from torch.nn import functional

import flowplug as fp


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("batch", [(5,), (2, 3), ()])
def test_squeeze_has_the_order_of_torch(factor, batch):
    squeeze, x = fp.Squeeze(factor), torch.randn(*batch, 2, 6, 12)
    y, ladj = squeeze(x)
    assert torch.equal(y, functional.pixel_unshuffle(x, factor))
    assert torch.equal(squeeze.inverse(y)[0], x)
    assert torch.equal(ladj, torch.zeros(batch))


def test_shapes_of_squeezes():
    squeeze = fp.Squeeze(3)
    assert squeeze.forward_shape((2, 6, 9)) == (18, 2, 3)
    assert squeeze.inverse_shape((18, 2, 3)) == (2, 6, 9)
    assert squeeze.forward_shape((2, None, None)) == (18, None, None)
    assert squeeze.forward_shape((None, 6, None)) == (None, 2, None)
    assert squeeze.latent_shape == (None, None, None)
    assert repr(squeeze) == "Squeeze(3)"


@pytest.mark.parametrize("shape", [(1, 3, 4), (1, 4, 3)])
def test_sides_that_cannot_be_squeezed(shape):
    with pytest.raises(fp.ShapeError, match=r"whose sides 2 divides; got \(1, "):
        fp.Squeeze()(torch.randn(5, *shape))


def test_channels_that_cannot_be_squeezed():
    with pytest.raises(fp.ShapeError, match=r"Squeeze.inverse needs .* channels 4 divides; got \(6, 2, 2\)"):
        fp.Squeeze().inverse(torch.randn(5, 6, 2, 2))


def test_too_few_dimensions_to_squeeze():
    with pytest.raises(fp.ShapeError, match=r"Squeeze expects inputs .*; got shape \(4, 4\)"):
        fp.Squeeze()(torch.randn(4, 4))


@pytest.mark.parametrize("factor", [0, -2])
def test_factors_below_one(factor):
    with pytest.raises(fp.ShapeError, match=f"must be at least 1; got {factor}"):
        fp.Squeeze(factor)


def test_reshape_keeps_the_order():
    reshape, x = fp.Reshape((2, 3, 4), (6, 4)), torch.randn(5, 7, 2, 3, 4)
    y, ladj = reshape(x)
    assert torch.equal(y, x.reshape(5, 7, 6, 4))
    assert torch.equal(reshape.inverse(y)[0], x)
    assert torch.equal(ladj, torch.zeros(5, 7))
    assert (reshape.event_dim, reshape.event_shape, reshape.latent_dim, reshape.latent_shape) == (
        *(3, (2, 3, 4)),
        *(2, (6, 4)),
    )
    assert repr(reshape) == "Reshape((2, 3, 4), (6, 4))"


def test_reshape_takes_its_shapes_only():
    with pytest.raises(fp.ShapeError, match=r"event \(2, 3\); got shape \(5, 3, 2\)"):
        fp.Reshape((2, 3), 6)(torch.randn(5, 3, 2))
    with pytest.raises(fp.ShapeError, match=r"Reshape.inverse expects .* event \(6,\); got shape \(5, 5\)"):
        fp.Reshape((2, 3), 6).inverse(torch.randn(5, 5))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), 5), r"as many entries; got event_shape=\(2, 3\) and latent_shape=\(5,\)"),
        (((), 1), "as many entries"),
        (((0, 3), 0), "positive sizes"),
    ],
)
def test_shapes_that_do_not_fit(shapes, message):
    with pytest.raises(fp.ShapeError, match=message):
        fp.Reshape(*shapes)
