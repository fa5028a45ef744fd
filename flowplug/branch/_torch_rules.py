"""The Lipschitz bounds of torch's own modules; those of its convolutions stand beside flowplug's."""

import math
from typing import Final

import torch
from torch import nn

from flowplug._errors import LipschitzError
from flowplug._precision import at_least_single
from flowplug.branch._bound import LipschitzBound, compose_bounds, rule_for

_SMOOTH = 15  # a threshold of Softplus from which on its jump, exp(-threshold) / beta, is below single precision


def _largest_swish_slope() -> float:
    """The largest slope of swish, ``x sigmoid(x)``: where its second derivative vanishes.

    There x tanh(x / 2) = 2, and the slope is 1/2 + x/4 = 1.0998...; the iteration contracts by 0.44.
    """
    x = 2.0
    for _ in range(60):
        x = 2 / math.tanh(x / 2)
    return math.nextafter(0.5 + x / 4, 2)


SWISH_SLOPE: Final = _largest_swish_slope()


@rule_for(nn.Sequential)
def _(module: nn.Sequential) -> LipschitzBound:
    return compose_bounds("nn.Sequential", *module)


@rule_for(nn.Linear)
def _(module: nn.Linear) -> LipschitzBound:
    return LipschitzBound(torch.linalg.matrix_norm(at_least_single(module.weight), 2), 2.0)


@rule_for(nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle)
def _(module: nn.Module) -> LipschitzBound:
    return LipschitzBound(1.0)


@rule_for(nn.AvgPool1d)
def _(module: nn.AvgPool1d) -> LipschitzBound:
    return _mean_of_windows(module, 1)


@rule_for(nn.AvgPool2d)
def _(module: nn.AvgPool2d) -> LipschitzBound:
    return _mean_of_windows(module, 2)


@rule_for(nn.AvgPool3d)
def _(module: nn.AvgPool3d) -> LipschitzBound:
    return _mean_of_windows(module, 3)


def _mean_of_windows(module: nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d, dimensions: int) -> LipschitzBound:
    """The geometric mean of the norms from 1 to 1 and from inf to inf, exact where windows do not overlap."""
    if module.ceil_mode or not module.count_include_pad or getattr(module, "divisor_override", None) is not None:
        raise LipschitzError(
            f"{type(module).__name__} has a known bound where all windows have the same divisor: with ceil_mode=False, "
            "count_include_pad=True and without divisor_override"
        )
    kernel, stride = (_each(size, dimensions) for size in (module.kernel_size, module.stride))
    # The largest number of windows that a pixel lies in.
    shared = math.prod(-(-size // step) for size, step in zip(kernel, stride, strict=True))
    return LipschitzBound(math.sqrt(shared / math.prod(kernel)), 2.0)


def _each(size: int | tuple[int, ...], dimensions: int) -> tuple[int, ...]:
    return (size,) * dimensions if isinstance(size, int) else size


@rule_for(nn.Identity, nn.ReLU, nn.Hardtanh, nn.Tanh, nn.Softsign, nn.LogSigmoid)
def _(module: nn.Module) -> LipschitzBound:
    return LipschitzBound(1.0, elementwise=True)


@rule_for(nn.Softplus)
def _(module: nn.Softplus) -> LipschitzBound:
    if module.threshold < _SMOOTH:
        raise LipschitzError(
            f"Softplus(threshold={module.threshold:g}) jumps where it turns linear, so that it has no Lipschitz bound: "
            f"use a threshold of at least {_SMOOTH}"
        )
    return LipschitzBound(1.0, elementwise=True)


@rule_for(nn.Sigmoid)
def _(module: nn.Sigmoid) -> LipschitzBound:
    return LipschitzBound(0.25, elementwise=True)


@rule_for(nn.SiLU)
def _(module: nn.SiLU) -> LipschitzBound:
    return LipschitzBound(SWISH_SLOPE, elementwise=True)


@rule_for(nn.ELU)
def _(module: nn.ELU) -> LipschitzBound:
    return LipschitzBound(max(1.0, abs(module.alpha)), elementwise=True)


@rule_for(nn.LeakyReLU)
def _(module: nn.LeakyReLU) -> LipschitzBound:
    return LipschitzBound(max(1.0, abs(module.negative_slope)), elementwise=True)


@rule_for(nn.PReLU)
def _(module: nn.PReLU) -> LipschitzBound:
    return LipschitzBound(module.weight.abs().amax().clamp(min=1), elementwise=True)
