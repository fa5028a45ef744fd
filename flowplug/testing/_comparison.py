"""How a test compares: to rounding, or the mean of draws by its standard error."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_FALSE_ALARM = 1e-6


class ConformanceError(AssertionError):
    """A transform breaks one of the laws."""


def z_test(name: str, draws: Iterator[Sequence[Tensor]], truth: Sequence[Tensor]) -> float:
    """Compares the mean of independent draws with the truth, entry by entry.

    Args:
        name: What is drawn, for the message.
        draws: Each a sequence of tensors shaped like ``truth``.
        truth: The exact expectations.

    Returns:
        The largest absolute z-score.

    Raises:
        ConformanceError: A z-score exceeds the threshold at which a correct estimator fails once in a million.
    """
    flat = torch.stack([torch.cat([part.flatten() for part in draw]) for draw in draws])
    wanted = torch.cat([part.flatten() for part in truth])
    mean, std = flat.mean(0), flat.std(0)
    # Entries that do not vary must be right to rounding; the floor gives them a standard error of that size.
    floor = 100 * torch.finfo(flat.dtype).eps * (1 + wanted.abs())
    z = (mean - wanted).abs() / (std / math.sqrt(len(flat)) + floor)
    tail = torch.tensor(_FALSE_ALARM / (2 * len(wanted)), dtype=torch.float64, device="cpu")
    threshold = -float(torch.special.ndtri(tail))
    largest = float(z.max())
    require(largest <= threshold, f"{name}: |z| = {largest:.3g} over {len(flat)} draws, allowed {threshold:.3g}")
    return largest


def require_close(name: str, got: Tensor, wanted: Tensor, *, units: float = 1000) -> None:
    """Raises ConformanceError unless both agree within so many units of rounding."""
    worst, allowed = deviation(name, got, wanted), units * torch.finfo(wanted.dtype).eps
    require(worst <= allowed, f"{name}: relative deviation {worst:.3g}, allowed {allowed:.3g}")


def deviation(name: str, got: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to 1 plus what is wanted."""
    require(got.shape == wanted.shape, f"{name}: expected shape {tuple(wanted.shape)}, got {tuple(got.shape)}")
    return float(((got - wanted).abs() / (1 + wanted.abs())).max()) if wanted.numel() else 0.0


def require(condition: bool, message: str) -> None:  # noqa: FBT001 -- reads like assert
    """Raises ConformanceError with the message unless the condition holds."""
    if not condition:
        raise ConformanceError(message)
