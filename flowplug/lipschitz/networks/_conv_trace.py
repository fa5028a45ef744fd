"""The exact trace of the derivative of convolutional networks, at about the cost of one convolution of a pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from flowplug._precision import at_least_single, in_dtype
from flowplug._reading import functional

Region = tuple[slice, slice, slice, slice]  # rows and columns of an image, and of the taps that stay within it there


def trace_of(weights: Sequence[Tensor], slopes: Sequence[Tensor], *, circular: bool) -> Tensor | None:
    r"""The trace ``(B,)`` of :math:`W_2 D_1 W_1`, or of :math:`W_3 D_2 W_2 D_1 W_1` with a :math:`W_2` of one pixel.

    .. math:: \operatorname{tr} J = \sum_q d_2(q)^T M(q) \, d_1(q), \qquad
        M(q) = \sum_{o: \, q - o \text{ on the image}} W_2 \odot \big(W_3(o)^T W_1(-o)^T\big)

    A pixel of the output sees the hidden ones at the distances o through the taps of the last kernel, and these see the
    same pixel of the input through the opposite taps of the first. ``None`` for other networks, and for images so small
    that circular padding brings a pixel back to itself.

    Args:
        weights: The kernels of the layers.
        slopes: Those of the activations between them, ``(B, C_l, H, W)``.
        circular: Whether images are padded by their other side, or by zeros.
    """
    if len(weights) not in (2, 3) or any(kernel.shape[-1] > 1 for kernel in weights[1:-1]):
        return None
    first, *middle, last = weights
    reach = first.shape[-1] // 2 + last.shape[-1] // 2
    if circular and reach >= min(slopes[0].shape[2:]):
        return None
    low, high, taps = _round_trips(first, last)
    size = slopes[0].shape[2:]
    regions = [] if circular else list(_regions(size, low, high))
    if not middle:
        return _linear(slopes[0], taps.diagonal(dim1=2, dim2=3), regions)
    taps = taps * middle[0][:, :, 0, 0]
    below, above = slopes
    if functional() or torch.autograd.forward_ad._current_level >= 0:
        return _bilinear(below, in_dtype(above, below.dtype), in_dtype(taps, below.dtype), regions)
    found: Tensor = _Trace.apply(below, in_dtype(above, below.dtype), in_dtype(taps, below.dtype), regions)  # type: ignore[no-untyped-call]
    return found


def _round_trips(first: Tensor, last: Tensor) -> tuple[int, int, Tensor]:
    """The distances ``low`` to ``high`` that both kernels reach, and for each :math:`W_3(o)^T W_1(-o)^T`.

    The latter is ``(T, T, hidden of the last, hidden of the first)``.
    """
    (before, after), (start, stop) = _reach(first), _reach(last)
    low, high = max(-start, -after), min(stop, before)
    there = last[:, :, low + start : high + start + 1, low + start : high + start + 1]
    back = first[:, :, before - high : before - low + 1, before - high : before - low + 1].flip(2, 3)
    return low, high, there.permute(2, 3, 1, 0) @ back.permute(2, 3, 1, 0)


def _reach(weight: Tensor) -> tuple[int, int]:
    """How many pixels a kernel sees before and behind its own."""
    size = weight.shape[-1]
    return (size - 1) // 2, size // 2


def _regions(size: Sequence[int], low: int, high: int) -> Iterator[Region]:
    """The image cut into rectangles of pixels q of which the same distances o lead to a q - o on the image."""
    rows, columns = (list(_lines(length, low, high)) for length in size)
    for row, vertical in rows:
        for column, horizontal in columns:
            yield row, column, vertical, horizontal


def _lines(length: int, low: int, high: int) -> Iterator[tuple[slice, slice]]:
    """The same for one dimension."""
    wide = length >= high - low
    for start, stop in pairwise([*range(high + 1), *range(length + low, length + 1)] if wide else range(length + 1)):
        if start < stop:
            yield slice(start, stop), slice(max(0, start - length + 1 - low), min(high, start) + 1 - low)


def _is_inner(region: Region, taps: Tensor) -> bool:
    """Whether all distances stay on the image."""
    return all(part == slice(0, count) for part, count in zip(region[2:], taps.shape, strict=False))


def _linear(slopes: Tensor, taps: Tensor, regions: Sequence[Region]) -> Tensor:
    """For a diagonal ``taps: (T, T, hidden)`` and slopes of one layer."""
    total = taps.sum((0, 1))
    weights = total.reshape(-1, 1, 1).repeat(1, *slopes.shape[2:])
    for row, column, vertical, horizontal in regions:
        weights[:, row, column] = taps[vertical, horizontal].sum((0, 1)).reshape(-1, 1, 1)
    return _sum(slopes * weights)


def _sum(image: Tensor) -> Tensor:
    """Over all entries of a row, ``(B,)``, not in half precision."""
    return image.sum((1, 2, 3), dtype=at_least_single(image[:0]).dtype)


def _mixed(slopes: Tensor, matrix: Tensor) -> Tensor:
    """``M d`` at every pixel, in one product."""
    pixels = slopes.movedim(1, -1)
    return (pixels.flatten(0, 2) @ matrix.mT).reshape(*pixels.shape[:3], matrix.shape[-2]).movedim(-1, 1)


def _applied(slopes: Tensor, taps: Tensor, regions: Sequence[Region]) -> Tensor:
    """``M(q) d(q)`` for the ``taps: (T, T, out, in)``."""
    whole = taps.sum((0, 1))
    found = _mixed(slopes, whole)
    for region in regions:
        if not _is_inner(region, taps):
            row, column, vertical, horizontal = region
            missing = taps[vertical, horizontal].sum((0, 1)) - whole
            found[:, :, row, column] += _mixed(slopes[:, :, row, column], missing)
    return found


def _bilinear(below: Tensor, above: Tensor, taps: Tensor, regions: Sequence[Region]) -> Tensor:
    """The trace, for autograd to differentiate."""
    return _sum(above * _applied(below, taps, regions))


def _outer(above: Tensor, below: Tensor) -> Tensor:
    """The sum over rows and pixels of :math:`d_2 d_1^T`."""
    return above.movedim(1, -1).flatten(0, 2).mT @ below.movedim(1, -1).flatten(0, 2)


class _Trace(torch.autograd.Function):
    """The same with its gradient in closed form, which needs no images for borders; autograd takes second derivatives.

    What is written in place has just been made.
    """

    @staticmethod
    def forward(ctx: Any, below: Tensor, above: Tensor, taps: Tensor, regions: Sequence[Region]) -> Tensor:  # noqa: ANN401 -- torch's
        image = _applied(below, taps, regions)
        ctx.regions = regions
        ctx.save_for_backward(below, above, taps, image)
        return _sum(above * image)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 -- torch's
        below, above, taps, image = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _by_autograd(below, above, taps, ctx.regions, grad)
        weight = in_dtype(grad, above.dtype).reshape(-1, 1, 1, 1)
        weighted = above * weight
        by_taps = _outer(weighted, below).expand(*taps.shape).clone()
        for region in ctx.regions:
            if not _is_inner(region, taps):
                row, column, vertical, horizontal = region
                here = _outer(weighted[:, :, row, column], below[:, :, row, column])
                by_taps -= here
                by_taps[vertical, horizontal] += here
        return _applied(weighted, taps.mT, ctx.regions), image * weight, by_taps, None


def _by_autograd(
    below: Tensor, above: Tensor, taps: Tensor, regions: Sequence[Region], grad: Tensor
) -> tuple[Tensor | None, ...]:
    inputs = [below, above, taps]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    found = iter(torch.autograd.grad(_bilinear(below, above, taps, regions), wanted, grad, create_graph=True))
    return *(next(found) if tensor.requires_grad else None for tensor in inputs), None
