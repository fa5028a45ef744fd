"""Masses of the cells of a grid, smoothed by a Polya tree, and what a piecewise linear map reads from them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from flowplug._precision import at_least_single

SMOOTHING = 0.3  # rows that the first split is held to be even by: chosen on validation images of MNIST


class Columns(NamedTuple):
    """What the map needs of the cells of some values; each has the shape of these."""

    below: Tensor
    above: Tensor
    mass: Tensor
    log_density: Tensor


class Tables(NamedTuple):
    """What follows from counts ``(E, L)``, in at least single precision and without a graph.

    Attributes:
        cells: For each cell the mass below it and above it, its own mass, and log density, ``(E L, 4)``.
        keys: Of the ends of cells, what `key` makes of the mass below or above, ``(E, L + 1)``.
        end: The normal score of the end of the grid, ``(E, 1)``; that of its beginning is minus this.
        slope: That beyond the grid, ``(E, 1)``.
        empty: Whether nothing was counted, ``(E, 1)``.
    """

    cells: Tensor
    keys: Tensor
    end: Tensor
    slope: Tensor
    empty: Tensor

    def at(self, cell: Tensor) -> Columns:
        """For indices of cells ``(B, E, S)``."""
        entries, levels = self.keys.shape[0], self.keys.shape[1] - 1
        first = levels * torch.arange(entries, device=cell.device)[:, None]
        return Columns(*self.cells[cell + first].unbind(-1))

    def cell_of(self, mass: Tensor, upper: Tensor) -> Tensor:
        """The indices of the cells that hold the quantiles of this mass, above where ``upper``; all ``(B, E, S)``.

        By bisection: `torch.searchsorted` warns inside vmap.
        """
        entries, levels = self.keys.shape[0], self.keys.shape[1] - 1
        keys, wanted = self.keys.flatten(), key(mass, upper)
        first = (levels + 1) * torch.arange(entries, device=mass.device)[:, None]
        cell, last = torch.zeros_like(upper, dtype=torch.long) + first, first + levels - 1
        step = 1 << (levels.bit_length() - 1)
        while step:
            further = torch.minimum(cell + step, last)
            cell = torch.where(keys[further] <= wanted, further, cell)
            step //= 2
        return cell - first


def key(mass: Tensor, upper: Tensor) -> Tensor:
    """What ascends with a quantile, to all digits in either tail, of the mass below it or, where ``upper``, above."""
    return torch.where(upper, 1, -1) / mass


@torch.no_grad()
def tables(counts: Tensor, width: float) -> Tables:
    """Those of counts ``(E, L)`` on cells of this width."""
    counts = at_least_single(counts)
    rows = counts.sum(-1, keepdim=True)
    outside = 0.5 / (rows + 2)
    mass = (1 - 2 * outside) * shares(counts)
    # Each from its own end: a share near 1 has no digits left for what is beyond it.
    below = torch.cat([outside, outside + mass.cumsum(-1)], -1)
    above = torch.cat([outside, outside + mass.flip(-1).cumsum(-1)], -1).flip(-1)
    end = -torch.special.ndtri(outside)
    upper = above < below
    cells = torch.stack([below[:, :-1], above[:, 1:], mass, mass.log() - math.log(width)], -1)
    keys = key(torch.where(upper, above, below), upper)
    return Tables(cells.flatten(0, 1), keys, end, 2 * end / (width * counts.shape[-1]), rows == 0)


def shares(counts: Tensor) -> Tensor:
    """Those of the cells ``(E, L)`` by a Polya tree: positive, and they add up to 1."""
    levels = counts.shape[-1]
    depth = (levels - 1).bit_length()
    missing = 2**depth - levels
    tree = [(pad(counts, (0, missing)), pad(torch.ones_like(counts[:1]), (0, missing)))]  # with the number of cells
    for _ in range(depth):
        half, size = tree[-1]
        tree.append((_halves(half).sum(-1), _halves(size).sum(-1)))
    share = torch.ones_like(tree[-1][0])
    for level in range(1, depth + 1):
        (whole, whole_size), (half, size) = tree[depth - level + 1], tree[depth - level]
        weight = SMOOTHING * level**2
        expected = weight * _halves(size) / whole_size.clamp(min=1)[..., None]
        share = ((share / (whole + weight))[..., None] * (_halves(half) + expected)).flatten(-2)
    return share[..., :levels]


def _halves(nodes: Tensor) -> Tensor:
    """Next to each other in a last dimension of their own."""
    return nodes.reshape(*nodes.shape[:-1], -1, 2)
