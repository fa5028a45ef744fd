"""Mean, spread and correlation of rows, in any units, and the matrix that whitens them.

Squares of data leave the range of single precision at 1e-20 and 1e20: there are none here.
"""

import math

import torch
from torch import Tensor

from flowplug._errors import SingularMatrixError


def standardise(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means and standard deviations ``(D,)``, and the scores ``(N, D)`` of mean 0 and variance 1, of ``x: (N, D)``.

    The standard deviation of a feature that is constant but for rounding is 0, and so are its scores.
    """
    # A mean of large numbers is off by rounding, which a second look removes.
    rough = x.mean(0)
    centred = x - rough
    rest = centred.mean(0)
    mean, centred = rough + rest, centred - rest
    largest = centred.abs().amax(0)
    std = _varying(largest * (centred / nonzero(largest)).square().mean(0).sqrt(), mean)
    return mean, std, torch.where(std > 0, centred / nonzero(std), 0)


def merge(
    mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor, share: float
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Mean and standard deviation of all rows, of which ``share`` are the others; Chan, Golub, LeVeque (1983).

    Also what the standard deviations of either part and the distance of their means contribute to that of the whole,
    each ``(D,)``: their squares add up to 1, or to 0 for a constant feature.
    """
    shift = other_mean - mean
    mean = mean + share * shift
    parts = math.sqrt(1 - share) * std, math.sqrt(share) * other_std, math.sqrt(share * (1 - share)) * shift
    std = _varying(torch.hypot(torch.hypot(parts[0], parts[1]), parts[2]), mean)
    first, second, between = (torch.where(std > 0, part / nonzero(std), 0) for part in parts)
    return mean, std, (first, second, between)


def nonzero(std: Tensor) -> Tensor:
    """What to divide by: the entries, and 1 for those that are 0."""
    return torch.where(std > 0, std, 1)


def whitener(correlation: Tensor, rows: float, share: float | None = None) -> Tensor:
    r"""The symmetric matrix :math:`(\lambda I + (1 - \lambda) R)^{-1/2}`, ``(D, D)``, for a correlation R.

    Args:
        correlation: R; whatever stands on its diagonal counts as 1.
        rows: How many rows it comes from.
        share: :math:`\lambda`; ``None`` for the oracle-approximating one. Chen, Wiesel, Eldar, Hero, "Shrinkage
            Algorithms for MMSE Covariance Estimation", IEEE Transactions on Signal Processing 58, 2010, eq. (23),
            without its terms in 2 / D, as in scikit-learn.

    Raises:
        SingularMatrixError: R is singular to working precision, and the share 0.
    """
    variances, directions = torch.linalg.eigh(correlation.clone().fill_diagonal_(1))
    rounding = len(variances) * torch.finfo(variances.dtype).eps
    if share == 0 and not variances[0] > rounding:
        raise SingularMatrixError(
            "the rows do not vary in some direction, which nothing can scale: pass a shrinkage above 0, or more rows"
        )
    variances = variances.clamp(min=rounding)
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
