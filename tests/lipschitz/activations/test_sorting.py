"""Sorting activations: entries are kept, and every norm of differences."""

import math

import pytest
import torch

import flowplug as fp


@pytest.mark.parametrize("activation", [fp.GroupSort(3), fp.FullSort(), fp.MaxMin()])
def test_sorting_keeps_entries_and_every_norm_of_differences(activation):
    x, other = torch.randn(2, 500, 6)
    y = activation(x)
    assert torch.equal(y.sort(dim=1).values, x.sort(dim=1).values)
    for order in (1.0, 1.5, 2.0, math.inf):
        before, after = (torch.linalg.vector_norm(d, order, dim=1) for d in (x - other, y - activation(other)))
        assert bool((after <= before * 1.00001).all())
    image = torch.randn(2, 6, 3, 3)
    pixels = activation(image.movedim(1, -1).reshape(-1, 6)).reshape(2, 3, 3, 6).movedim(-1, 1)
    assert torch.equal(activation(image), pixels)


def test_sorting_within_groups():
    x = torch.tensor([[3.0, 1.0, 2.0, 9.0, 8.0, 7.0]])
    assert fp.MaxMin()(x).tolist() == [[1, 3, 2, 9, 7, 8]]
    with pytest.raises(fp.ShapeError, match=r"GroupSort\(4\) expects .* groups of 4; got \(1, 6\)"):
        fp.GroupSort(4)(x)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        fp.GroupSort(0)
