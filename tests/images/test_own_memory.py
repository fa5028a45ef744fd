"""Transforms that only move numbers return them in memory of their own, as hosts write on what they get."""

import pytest
import torch

import flowplug as fp

MOVES = {
    "Reshape": (fp.Reshape((1, 4, 4), 16), (1, 4, 4)),
    "Squeeze 1": (fp.Squeeze(1), (1, 4, 4)),
    "Squeeze of one block": (fp.Squeeze(2), (1, 2, 2)),
    "Composed": (fp.ComposedTransform(fp.Reshape((1, 4, 4), 16), fp.Reshape(16, (4, 4))), (1, 4, 4)),
    "Multiscale": (
        fp.MultiscaleTransform(fp.Reshape((2, 2, 2), (4, 2, 1)), fp.Reshape((2, 2, 1), 4), event_shape=(2, 2, 2)),
        (2, 2, 2),
    ),
}


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_what_is_returned_may_be_written_on(name, direction):
    transform, event = MOVES[name]
    given = torch.randn(5, *(event if direction == "forward" else transform.forward_shape(event)))
    before = given.clone()
    found, ladj = getattr(transform, direction)(given)
    found.add_(1)
    ladj.add_(1)
    assert torch.equal(given, before)


def test_features_by_a_generator_of_names():
    flow, x = fp.ComposedTransform(fp.ActNorm(2), fp.ActNorm(2)).eval(), torch.randn(3, 2)
    features = flow.forward_with_features(x, names=(name for name in ["transforms.0"]))[2]
    assert list(features) == ["transforms.0"]
    for names in (None, "transforms.0", ["transforms.2"]):
        with pytest.raises(ValueError, match=r"must be a list of names of its parts, transforms\.0, transforms\.1"):
            flow.forward_with_features(x, names=names)


def test_negative_widths_of_contexts():
    with pytest.raises(fp.ShapeError, match=r"ImageStack\(context_features=...\) must not be negative; got -2"):
        fp.ImageStack((1, 8, 8), context_features=-2)
    with pytest.raises(fp.ShapeError, match=r"ImageStack needs positive sizes; got size=0"):
        fp.ImageStack((1, 8, 8), size=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int64])
def test_levels_of_any_integer_dtype(dtype):
    pixels = torch.tensor([0, 3, 15]).to(dtype)
    assert torch.equal((16 * fp.Dequantize(16)(pixels)).floor(), torch.tensor([0.0, 3.0, 15.0]))
    with pytest.raises(fp.DomainError, match="levels from 0 to 14; got some from 0 to 15"):
        fp.Dequantize(15)(pixels)


def test_images_smaller_than_circular_padding():
    g = fp.LipschitzCNN(1, (4,), kernel_sizes=(9, 9), padding_mode="circular")
    with pytest.raises(fp.ShapeError, match=r"pads by \(4, 4\) pixels of the other side"):
        fp.ResidualTransform(g)(torch.randn(2, 1, 3, 3))
    assert fp.ResidualTransform(g)(torch.randn(2, 1, 4, 4))[0].shape == (2, 1, 4, 4)


def test_an_end_of_the_interval_is_taken_for_the_number_next_to_it():
    logit = fp.Logit(0, event_dim=1)
    below = torch.nextafter(torch.ones(()), torch.zeros(()))
    assert torch.equal(logit(torch.ones(1, 1))[0], logit(below.reshape(1, 1))[0])
