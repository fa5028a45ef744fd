"""Transforms of patches: which pixels meet, what a patch is told, and errors."""

import pytest
import torch

import flowplug as fp


class Recorder(fp.Transform):
    """The identity of vectors, which keeps what it met."""

    event_dim = 1

    def __init__(self, context_features=0):
        super().__init__()
        self.context_features = context_features

    def _forward(self, x, context):
        self.met, self.told = x, context
        return x, x.sum(-1)

    def _inverse(self, y, context):
        self.met, self.told = y, context
        return y, -y.sum(-1)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_patches_tile_the_rolled_image(shift, direction):
    inner = Recorder()
    x = torch.arange(2 * 2 * 4 * 6.0).reshape(2, 2, 4, 6)
    y, ladj = getattr(fp.PatchTransform(inner, (2, 4, 6), 2, shift=shift), direction)(x)
    rolled = x.roll((shift, shift), (-2, -1))
    for number in range(6):
        row, column = divmod(number, 3)
        patch = rolled[..., 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(inner.met[:, number], patch.flatten(1))
    assert torch.equal(y, x)
    assert torch.equal(ladj.abs(), x.flatten(1).sum(1))


def test_a_conditional_transform_is_told_row_and_column_before_the_context():
    inner = Recorder(context_features=2 + 3 + 1)
    patches = fp.PatchTransform(inner, (1, 4, 6), 2)
    assert patches.context_features == 1
    patches(torch.randn(5, 1, 4, 6), torch.arange(5.0)[:, None])
    row, column, context = inner.told.split([2, 3, 1], -1)
    assert torch.equal(row.argmax(-1)[0], torch.tensor([0, 0, 0, 1, 1, 1]))
    assert torch.equal(column.argmax(-1)[0], torch.tensor([0, 1, 2, 0, 1, 2]))
    assert bool((row.sum(-1) == 1).all())
    assert bool((column.sum(-1) == 1).all())
    assert torch.equal(context[..., 0], torch.arange(5.0)[:, None].expand(5, 6))


def test_one_that_is_told_the_place_alone_needs_no_context():
    patches = fp.PatchTransform(Recorder(context_features=5), (1, 4, 6), 2)
    assert patches.context_features == 0
    assert patches(torch.randn(2, 3, 1, 4, 6))[1].shape == (2, 3)


def test_a_start_counts_patches():
    x = 3 + 2 * torch.randn(20, 1, 8, 8)
    patches = fp.PatchTransform(fp.ActNorm(4), (1, 8, 8), 2)
    y, _ = patches(x)  # 320 patches
    assert patches.transform.initialized
    assert torch.allclose(y.mean(), torch.zeros(()), atol=1e-4)


def test_what_fits_no_patch():
    with pytest.raises(fp.ShapeError, match=r"whose sides size=3 divides; got \(1, 4, 6\)"):
        fp.PatchTransform(fp.ActNorm(9), (1, 4, 6), 3)
    with pytest.raises(fp.ShapeError, match=r"width 8 = 2 x 2\^2; ActNorm has event_dim 1 and event_shape \(4,\)"):
        fp.PatchTransform(fp.ActNorm(4), (2, 4, 6), 2)
    with pytest.raises(fp.ShapeError, match="ActNorm has event_dim 3"):
        fp.PatchTransform(fp.ActNorm(1, event_dim=3), (1, 4, 6), 2)
    with pytest.raises(fp.ShapeError, match=r"got \(4, 6\)"):
        fp.PatchTransform(fp.ActNorm(4), (4, 6), 2)
    with pytest.raises(fp.ContextError, match=r"a context of width 5 .* Recorder has 3"):
        fp.PatchTransform(Recorder(context_features=3), (1, 4, 6), 2)
    with pytest.raises(ValueError, match="from 0 to size - 1 = 1; got 2"):
        fp.PatchTransform(fp.ActNorm(4), (1, 4, 6), 2, shift=2)
    with pytest.raises(fp.ShapeError, match=r"PatchTransform expects inputs .*; got shape \(5, 1, 6, 4\)"):
        fp.PatchTransform(fp.ActNorm(4), (1, 4, 6), 2)(torch.zeros(5, 1, 6, 4))
