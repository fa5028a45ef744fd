"""The LU decomposition of a square matrix, kept as long as the values of the matrix stay the same."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from flowplug._precision import at_least_single, full_precision


class Factors(NamedTuple):
    """What follows from a matrix W, in at least single precision and without a graph.

    Attributes:
        lu: The factors, as `torch.linalg.lu_factor` packs them.
        pivots: Its pivots.
        logabsdet: log|det W|, a scalar in nats; -inf for a singular one.
        condition: The condition number of W in the 2-norm, from below within a small factor; inf for a singular one.
    """

    lu: Tensor
    pivots: Tensor
    logabsdet: Tensor
    condition: Tensor

    def solve(self, rows: Tensor, *, adjoint: bool = False) -> Tensor:
        """The solutions ``x: (B, D)`` of ``W x = y``, or of ``W^T x = y``, for the rows ``y: (B, D)``, in their dtype."""
        with full_precision(self.lu):
            rows_t = rows.to(self.lu.dtype).T
            solution: Tensor = torch.linalg.lu_solve(self.lu, self.pivots, rows_t, adjoint=adjoint).T
        return solution.to(rows.dtype)


class Factorization:
    """The factors of a matrix, found again whenever a value of it has changed, by whatever way.

    Comparing values costs D^2, next to D^3 for the factors; objects and version counters miss what fused optimizers,
    ``.data``, views and swaps write. Copies and pickles start empty.
    """

    def __init__(self) -> None:
        self._kept: tuple[Tensor, Factors] | None = None

    def __getstate__(self) -> dict[str, object]:
        """Nothing is copied."""
        return {"_kept": None}

    def __call__(self, matrix: Tensor) -> Factors:
        """The factors of ``matrix: (D, D)`` as it is now."""
        # What is found in inference mode must serve outside it.
        with torch.inference_mode(mode=False), torch.no_grad():
            if self._kept is None or not _same(self._kept[0], matrix):
                kept = matrix.detach().clone()
                self._kept = (kept, _factorize(at_least_single(kept)))
            return self._kept[1]


def _same(kept: Tensor, matrix: Tensor) -> bool:
    return kept.dtype == matrix.dtype and kept.device == matrix.device and torch.equal(kept, matrix)


def _factorize(matrix: Tensor) -> Factors:
    with full_precision(matrix):
        lu, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        return Factors(lu, pivots, lu.diagonal().abs().log().sum(), _condition(matrix, lu, pivots))


def _condition(matrix: Tensor, lu: Tensor, pivots: Tensor, steps: int = 8) -> Tensor:
    """By power iterations on the matrix and its inverse."""
    if not lu.diagonal().abs().amin() > 0:
        return lu.new_tensor(math.inf)
    forward = backward = torch.linspace(1, 2, len(matrix), dtype=matrix.dtype, device=matrix.device)[:, None]
    for _ in range(steps):
        forward = functional.normalize(matrix.T @ (matrix @ forward), dim=0)
        backward = torch.linalg.lu_solve(lu, pivots, backward)
        backward = functional.normalize(torch.linalg.lu_solve(lu, pivots, backward, adjoint=True), dim=0)
    backward = torch.linalg.lu_solve(lu, pivots, backward)
    condition: Tensor = torch.linalg.vector_norm(matrix @ forward) * torch.linalg.vector_norm(backward)
    return condition
