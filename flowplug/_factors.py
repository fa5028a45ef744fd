"""The LU decomposition of a square matrix, kept as long as the values of the matrix stay the same."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from flowplug._memory import Memory
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
        """The solutions ``x: (B, D)`` of ``W x = y``, or ``W^T x = y``, for the rows ``y: (B, D)``, in their dtype."""
        with full_precision(self.lu):
            rows_t = rows.to(self.lu.dtype).T
            solution: Tensor = torch.linalg.lu_solve(self.lu, self.pivots, rows_t, adjoint=adjoint).T
        return solution.to(rows.dtype)


class Factorization:
    """The factors of a matrix, found again whenever a value of it has changed, by whatever way.

    To look for that reads W once, where a comparison would cost a good part of an eval pass; objects and version
    counters miss what fused optimizers, ``.data``, views and swaps write. Copies and pickles start empty.

    Args:
        transposed: Whether to factorize W^T. Units of its rows cost a matrix digits of its factors, units of its
            columns do not; a change of W is seen against the other numbers of its row.
    """

    def __init__(self, *, transposed: bool = False) -> None:
        self._transposed = transposed
        self._memory: Memory[Factors] = Memory()

    def __call__(self, matrix: Tensor) -> Factors:
        """The factors of ``matrix: (D, D)``, or its transpose, as it is now."""

        def factorize() -> Factors:
            single = at_least_single(matrix.detach())
            with full_precision(single):
                return _factorize(single.T if self._transposed else single)

        return self._memory([matrix], None, factorize)


def logabsdet_of(matrix: Tensor) -> Tensor:
    """log|det W| of one ``(D, D)``, a scalar without a sign, which takes twice the time."""
    factors: Tensor = torch.linalg.lu_factor_ex(matrix)[0]
    return factors.diagonal().abs().log().sum()


def _factorize(matrix: Tensor) -> Factors:
    lu, pivots, _ = torch.linalg.lu_factor_ex(matrix)
    return Factors(lu, pivots, lu.diagonal().abs().log().sum(), _condition(matrix, lu, pivots))


def _condition(matrix: Tensor, lu: Tensor, pivots: Tensor, steps: int = 8) -> Tensor:
    """By power iterations on the matrix and its inverse."""
    if not lu.diagonal().abs().amin() > 0:
        return lu.new_full((), math.inf)
    forward = backward = torch.linspace(1, 2, len(matrix), dtype=matrix.dtype, device=matrix.device)[:, None]
    for _ in range(steps):
        forward = functional.normalize(matrix.T @ (matrix @ forward), dim=0)
        backward = torch.linalg.lu_solve(lu, pivots, backward)
        backward = functional.normalize(torch.linalg.lu_solve(lu, pivots, backward, adjoint=True), dim=0)
    backward = torch.linalg.lu_solve(lu, pivots, backward)
    condition: Tensor = torch.linalg.vector_norm(matrix @ forward) * torch.linalg.vector_norm(backward)
    return condition
