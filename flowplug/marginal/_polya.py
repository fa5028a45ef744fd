"""Masses of the cells of a grid, smoothed by a Polya tree, and what a piecewise linear map reads from them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

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
        scores: Normal scores of the ends of cells, ascending, ``(E, L + 1)``.
        slope: That beyond the grid, ``(E, 1)``.
        empty: Whether nothing was counted, ``(E, 1)``.
    """

    cells: Tensor
    scores: Tensor
    slope: Tensor
    empty: Tensor

    def at(self, cell: Tensor) -> Columns:
        """For indices of cells ``(B, E, S)``."""
        entries, levels = self.scores.shape[0], self.scores.shape[1] - 1
        first = levels * torch.arange(entries, device=cell.device)[:, None]
        return Columns(*self.cells[cell + first].unbind(-1))

    def cell_of(self, score: Tensor) -> Tensor:
        """The indices of the cells of scores ``(B, E, S)``, by bisection: `torch.searchsorted` warns inside vmap."""
        entries, levels = self.scores.shape[0], self.scores.shape[1] - 1
        scores = self.scores.flatten()
        first = (levels + 1) * torch.arange(entries, device=score.device)[:, None]
        cell = torch.zeros_like(score, dtype=torch.long) + first
        step = 1 << (levels.bit_length() - 1)
        last = first + levels - 1
        while step:
            further = torch.minimum(cell + step, last)
            cell = torch.where(scores[further] <= score, further, cell)
            step //= 2
        return cell - first


@torch.no_grad()
def tables(counts: Tensor, width: float) -> Tables:
    """Those of counts ``(E, L)`` on cells of this width."""
    counts = at_least_single(counts)
    rows = counts.sum(-1, keepdim=True)
    end = 0.5 / (rows + 2)
    mass = (1 - 2 * end) * shares(counts)
    # Each from its own end: a share near 1 has no digits left for what is beyond it.
    below = torch.cat([end, end + mass.cumsum(-1)], -1)
    above = torch.cat([end, end + mass.flip(-1).cumsum(-1)], -1).flip(-1)
    lower = below < above
    scores = torch.special.ndtri(torch.where(lower, below, above))
    scores = torch.where(lower, scores, -scores).cummax(-1).values
    slope = (scores[:, -1:] - scores[:, :1]) / (width * counts.shape[-1])
    log_density = mass.log() - math.log(width)
    cells = torch.stack([below[:, :-1], above[:, 1:], mass, log_density], -1)
    return Tables(cells.flatten(0, 1), scores, slope, rows == 0)


def shares(counts: Tensor) -> Tensor:
    """Those of the cells ``(E, L)`` by a Polya tree: positive, and they add up to 1."""
    levels = counts.shape[-1]
    depth = (levels - 1).bit_length()
    cells = torch.nn.functional.pad(torch.ones_like(counts[:1]), (0, 2**depth - levels))  # those of the grid
    counts = torch.nn.functional.pad(counts, (0, 2**depth - levels))
    tree = [(counts, cells)]
    for _ in range(depth):
        tree.append((_halves(tree[-1][0]).sum(-1), _halves(tree[-1][1]).sum(-1)))
    share = torch.ones_like(tree[-1][0])
    for level in range(1, depth + 1):
        (whole, size), (half, half_size) = tree[depth - level + 1], tree[depth - level]
        weight = SMOOTHING * level**2
        expected = _halves(half_size) / size.clamp(min=1)[..., None]
        share = (share[..., None] * (_halves(half) + weight * expected) / (whole + weight)[..., None]).flatten(-2)
    return share[..., :levels]


def _halves(nodes: Tensor) -> Tensor:
    """Next to each other in a last dimension of their own."""
    return nodes.reshape(*nodes.shape[:-1], -1, 2)
