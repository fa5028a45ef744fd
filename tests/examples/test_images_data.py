"""examples/images/data.py: what is read, and what is refused in a line."""

import numpy as np
import pytest
import torch

from common.tables import PARTS
from images.data import load


def arrays(shape=(8, 8), rows=6, **changes):
    values = {part: np.arange(rows * np.prod(shape), dtype=np.uint8).reshape(rows, *shape) for part in PARTS}
    labels = {f"{part}_labels": np.arange(rows) % 3 for part in PARTS}
    return {key: value for key, value in {**values, **labels, **changes}.items() if value is not None}


@pytest.fixture
def written(tmp_path):
    """Writes a file, and returns its path."""

    def write(**values):
        np.savez(tmp_path / "some.npz", **values)
        return tmp_path / "some.npz"

    return write


@pytest.mark.parametrize(("shape", "event_shape"), [((8, 6), (1, 8, 6)), ((3, 4, 4), (3, 4, 4))])
def test_images_are_read_with_their_labels(written, shape, event_shape):
    images = load(written(**arrays(shape)))
    assert (images.name, images.event_shape, images.levels, images.classes) == ("some", event_shape, 256, 3)
    assert images.coloured == (event_shape[0] == 3)
    for part in (images.train, images.val, images.test):
        assert part.pixels.dtype == torch.uint8
        assert part.pixels.flatten().tolist() == arrays(shape)["train"].flatten().tolist()
        assert part.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_digits_need_no_file_and_have_their_own_levels():
    images = load()
    assert images.levels == 17
    assert images.classes == 10
    assert int(images.train.pixels.max()) == 16
    assert {len(part.labels.unique()) for part in (images.train, images.val, images.test)} == {10}


def test_the_noise_of_a_part_is_fixed_and_within_its_level():
    images = load()
    torch.manual_seed(1)
    x, labels = images.fixed(images.val, 50)
    torch.manual_seed(2)
    assert torch.equal(x, images.fixed(images.val, 50)[0])
    assert x.shape == (50, 1, 8, 8)
    assert torch.equal((17 * x).floor().byte(), images.val.pixels[:50])
    assert torch.equal(labels, images.val.labels[:50])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"val": None},
            r"lacks the arrays \['val'\], it holds .*: write one by numpy.savez\(path, train=..., train_labels",
        ),
        ({"test_labels": None}, r"lacks the arrays \['test_labels'\]"),
        ({"val": np.zeros((6, 8, 6), np.uint8)}, r"images of one size.*val uint8 \(6, 8, 6\)"),
        ({part: np.zeros((6, 64), np.uint8) for part in PARTS}, r"images of one size.*train uint8 \(6, 64\)"),
        ({"train": np.zeros((6, 8, 8))}, "pixels as they were stored.*train float64"),
        ({"train_labels": np.zeros(5, int)}, "a label for each image"),
        ({"train_labels": np.zeros(6)}, "a label for each image"),
        ({"train_labels": np.arange(6) - 1}, "labels from 0"),
        ({"val": np.zeros((1, 8, 8), np.uint8), "val_labels": np.zeros(1, int)}, "at least 2 images.*val has too few"),
        ({part: np.zeros((6, 7, 8), np.uint8) for part in PARTS}, "even height and width"),
        ({"val": np.array([{}, {}], dtype=object)}, "is damaged, or holds objects: write one by"),
    ],
)
def test_other_arrays_are_refused(written, changes, message):
    with pytest.raises(ValueError, match=message):
        load(written(**arrays(**changes)))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off", None])
def test_damaged_files_are_refused(written, content):
    path = written(**arrays(rows=200))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ValueError, match=r"is no \.npz file: write one by"):
        load(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "some.npz"
    np.savez_compressed(path, **arrays(rows=200))
    whole = bytearray(path.read_bytes())
    whole[200] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="is damaged, or holds objects: write one by"):
        load(path)


def test_one_array_is_no_file_of_images(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="holds one array: write one by"):
        load(tmp_path / "one.npy")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*none.npz: give an .npz file with arrays.*, or digits"):
        load(tmp_path / "none.npz")
