"""Integrates a density over the plane."""

import torch


@torch.no_grad()
def integral(log_prob, side=401, reach=5.0):
    """The trapezoid sum of exp(log_prob) over ``[-reach, reach]^2``, in float64."""
    line = torch.linspace(-reach, reach, side, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    total = sum(float(log_prob(rows).exp().sum()) for rows in points.split(100_000))
    return total * (2 * reach / (side - 1)) ** 2
