"""Means of values that several flows have of the same rows, and their error."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """A mean, and two standard errors of it."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ± {self.error:.2f}"


def estimated(values: list[Tensor]) -> Estimate:
    r"""Mean of ``(rows,)`` of each seed, and the error of rows and seeds together.

    That is :math:`2\sqrt{s_r^2 / R + s_s^2 / S}`, with the standard deviations :math:`s_r` of the R rows' means over
    seeds and :math:`s_s` of the S seeds' means over rows.

    Example:
        >>> print(estimated([torch.tensor([1.0, 2.0, 3.0])]))
        +2.00 ± 1.15
    """
    table = torch.stack(values).double()
    variance = float(table.mean(0).var()) / table.shape[1]
    if len(table) > 1:
        variance += float(table.mean(1).var()) / len(table)
    return Estimate(float(table.mean()), 2 * math.sqrt(variance))


def estimate(values: list[Tensor], sign: str = "") -> str:
    """The same in a table, nothing where there are no values."""
    if not values:
        return ""
    mean, error = estimated(values)
    return f"{mean:{sign}.3f} ± {error:.3f}"
