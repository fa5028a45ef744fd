"""Means of values that several flows have of the same rows, and their error."""

import math

import torch
from torch import Tensor


def estimate(values: list[Tensor], sign: str = "") -> str:
    r"""Mean of ``(rows,)`` of each seed, and the error of rows and seeds together.

    That is :math:`2\sqrt{s_r^2 / R + s_s^2 / S}`, with the standard deviations :math:`s_r` of the R rows' means over
    seeds and :math:`s_s` of the S seeds' means over rows.
    """
    if not values:
        return ""
    table = torch.stack(values).double()
    variance = float(table.mean(0).var()) / table.shape[1]
    if len(table) > 1:
        variance += float(table.mean(1).var()) / len(table)
    return f"{float(table.mean()):{sign}.3f} ± {2 * math.sqrt(variance):.3f}"
