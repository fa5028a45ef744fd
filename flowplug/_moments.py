"""Mean, spread and correlation of rows, in any units, and the matrix that whitens them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """What is known of rows of D features.

    Squares of them would leave the range of single precision at 1e-20 and 1e20: there are none.

    Attributes:
        mean: ``(D,)``.
        std: Standard deviations, ``(D,)``; 0 for a feature that is constant but for rounding.
        correlation: ``(D, D)``, with zeros for constant features; ``None`` if nobody asked.
    """

    mean: Tensor
    std: Tensor
    correlation: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, *, correlation: bool) -> Moments:
        """Those of the rows ``x: (N, D)`` with N >= 1."""
        # A mean of large numbers is off by rounding, which a second look removes.
        rough = x.mean(0)
        centred = x - rough
        rest = centred.mean(0)
        mean, centred = rough + rest, centred - rest
        scaled = centred / nonzero(centred.abs().amax(0))
        std = _varying(centred.abs().amax(0) * scaled.square().mean(0).sqrt(), mean)
        if not correlation:
            return cls(mean, std)
        scores = torch.where(std > 0, centred / nonzero(std), 0)
        return cls(mean, std, scores.T @ scores / len(x))

    def merge(self, other: Moments, share: float) -> Moments:
        """Those of all rows, of which the share of the other is in (0, 1]; as Chan, Golub, LeVeque (1983)."""
        shift = other.mean - self.mean
        mean = self.mean + share * shift
        parts = [math.sqrt(1 - share) * self.std, math.sqrt(share) * other.std, math.sqrt(share * (1 - share)) * shift]
        std = _varying(torch.hypot(torch.hypot(parts[0], parts[1]), parts[2]), mean)
        if self.correlation is None or other.correlation is None:
            return Moments(mean, std)
        first, second, between = (
            torch.outer(part, part) for part in (torch.where(std > 0, part / nonzero(std), 0) for part in parts)
        )
        return Moments(mean, std, first * self.correlation + second * other.correlation + between)


def nonzero(std: Tensor) -> Tensor:
    """What to divide by: the entries, and 1 for those that are 0."""
    return torch.where(std > 0, std, 1)


def whitener(correlation: Tensor, rows: float, share: float | None = None) -> Tensor:
    r"""The symmetric matrix :math:`(\lambda I + (1 - \lambda) R)^{-1/2}`, ``(D, D)``, for a correlation R.

    Args:
        correlation: R, as in `Moments`; the variance of constant features counts as 1.
        rows: How many rows it comes from.
        share: :math:`\lambda`; ``None`` for the oracle-approximating one. Chen, Wiesel, Eldar, Hero, "Shrinkage
            Algorithms for MMSE Covariance Estimation", IEEE Transactions on Signal Processing 58, 2010, eq. (23),
            without its terms in 2 / D, as in scikit-learn.
    """
    variances, directions = torch.linalg.eigh(correlation.clone().fill_diagonal_(1))
    # Below that they are rounding.
    variances = variances.clamp(min=len(variances) * torch.finfo(variances.dtype).eps)
    used = _shrinkage(variances, rows) if share is None else share
    matrix: Tensor = directions / (used + (1 - used) * variances).sqrt() @ directions.T
    return matrix


def _varying(std: Tensor, mean: Tensor) -> Tensor:
    """Standard deviations, those of rounding set to 0."""
    return torch.where(std > torch.finfo(std.dtype).eps * mean.abs(), std, 0)


def _shrinkage(variances: Tensor, rows: float) -> Tensor:
    squares, square = variances.square().sum(), variances.sum().square()
    unlike = (squares - square / len(variances)).clamp(min=0)  # 0 but for rounding where all are equal: a share of 1
    return ((squares + square) / ((rows + 1) * unlike)).clamp(max=1)
