"""Means of values that several flows have of the same rows, and their error."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Estimate(NamedTuple):
    """A mean, and two standard errors of it."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ± {self.error:.2f}"


def of_rows(values: Tensor) -> Estimate:
    """The mean of ``(rows,)``, and the error of rows.

    Example:
        >>> import torch
        >>> print(of_rows(torch.tensor([1.0, 2.0, 3.0])))
        +2.00 ± 1.15
    """
    values = values.double()
    return Estimate(float(values.mean()), 2 * float(values.std()) / math.sqrt(len(values)))


def over_seeds(runs: Sequence[Estimate]) -> Estimate:
    r"""The mean over seeds of what each run says of the same rows, and the error of rows and seeds together.

    That is :math:`2\sqrt{\sum_i e_i^2 / S + s^2 / S}`, with the standard error :math:`e_i` of rows of each of S seeds,
    and the standard deviation s of the seeds' means. What runs share of the error of rows is not divided by S: at most
    the mean, as if they said the same of each row.

    Example:
        >>> print(over_seeds([Estimate(1.0, 0.3), Estimate(3.0, 0.3)]))
        +2.00 ± 2.02
    """
    means = [run.mean for run in runs]
    seeds = 4 * statistics.variance(means) / len(means) if len(means) > 1 else 0.0
    return Estimate(statistics.fmean(means), math.sqrt(statistics.fmean(run.error**2 for run in runs) + seeds))


def estimated(values: Sequence[Tensor]) -> Estimate:
    """The same of ``(rows,)`` of each seed."""
    return over_seeds([of_rows(value) for value in values])


def written(runs: Sequence[Estimate], sign: str = "") -> str:
    """`over_seeds` in a table, nothing where there are no runs."""
    if not runs:
        return ""
    mean, error = over_seeds(runs)
    return f"{mean:{sign}.3f} ± {error:.3f}"


def estimate(values: Sequence[Tensor], sign: str = "") -> str:
    """The same of ``(rows,)`` of each seed."""
    return written([of_rows(value) for value in values], sign)
