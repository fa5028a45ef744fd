"""The exact trace of the derivative of convolutional networks, at about the cost of one convolution of a pixel."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowplug._precision import at_least_single, in_dtype
from flowplug._reading import functional


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
    height, width = slopes[0].shape[2:]
    cut = None if circular or low == high else _cut((height, width), low, high, slopes[0])
    if not middle:
        return _linear(slopes[0], taps.diagonal(dim1=1, dim2=2), cut)
    taps = taps * middle[0][:, :, 0, 0]
    below, above = slopes
    parts = below, in_dtype(above, below.dtype), in_dtype(taps, below.dtype), cut
    if functional() or torch.autograd.forward_ad._current_level >= 0:
        return _bilinear(*parts)
    found: Tensor = _Trace.apply(*parts)  # type: ignore[no-untyped-call]
    return found


def _round_trips(first: Tensor, last: Tensor) -> tuple[int, int, Tensor]:
    """The distances ``low`` to ``high`` that both kernels reach, and for each :math:`W_3(o)^T W_1(-o)^T`.

    The latter is ``(T, hidden of the last, hidden of the first)``, with all T pairs of taps.
    """
    (before, after), (start, stop) = _reach(first), _reach(last)
    low, high = max(-start, -after), min(stop, before)
    there = last[:, :, low + start : high + start + 1, low + start : high + start + 1]
    back = first[:, :, before - high : before - low + 1, before - high : before - low + 1].flip(2, 3)
    return low, high, (there.permute(2, 3, 1, 0) @ back.permute(2, 3, 1, 0)).flatten(0, 1)


def _reach(weight: Tensor) -> tuple[int, int]:
    """How many pixels a kernel sees before and behind its own."""
    size = weight.shape[-1]
    return (size - 1) // 2, size // 2


class Cut(NamedTuple):
    """The border of an image.

    Attributes:
        pixels: Those from which some distance leads off the image, ``(P,)``, in the order of its rows.
        off: For which of the T distances that is so, 1 or 0, ``(P, T)``.
    """

    pixels: Tensor
    off: Tensor


def _cut(size: tuple[int, int], low: int, high: int, like: Tensor) -> Cut:
    # The compiler looks through a cache: to it they are constants.
    return (_made if torch.compiler.is_compiling() else _kept)(size, low, high, like.dtype, like.device)


@functools.lru_cache
def _kept(size: tuple[int, int], low: int, high: int, dtype: torch.dtype, device: torch.device) -> Cut:
    # What is kept from inference mode could not be differentiated later. The compiler does not know the keyword.
    with torch.inference_mode(False):  # noqa: FBT003
        return _made(size, low, high, dtype, device)


def _made(size: tuple[int, int], low: int, high: int, dtype: torch.dtype, device: torch.device) -> Cut:
    height, width = size
    distances = range(low, high + 1)
    rows = [[not 0 <= q - o < height for o in distances] for q in range(height)]
    columns = [[not 0 <= q - o < width for o in distances] for q in range(width)]
    off = {
        i * width + j: [float(y or x) for y in row for x in column]
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
        if any(row) or any(column)
    }
    return Cut(torch.tensor(list(off), device=device), torch.tensor(list(off.values()), dtype=dtype, device=device))


def _linear(slopes: Tensor, taps: Tensor, cut: Cut | None) -> Tensor:
    """For a diagonal ``taps: (T, hidden)`` and slopes of one layer."""
    _, _, height, width = slopes.shape
    weights = taps.sum(0).unsqueeze(1).expand(-1, height * width)
    if cut is not None:
        weights = weights.index_add(1, cut.pixels, -(in_dtype(cut.off, taps.dtype) @ taps).mT)
    return _sum(slopes * weights.reshape(-1, height, width))


def _sum(image: Tensor) -> Tensor:
    """Over all entries of a row, ``(B,)``, not in half precision."""
    return image.sum((1, 2, 3), dtype=at_least_single(image[:0]).dtype)


def _pixels(image: Tensor) -> Tensor:
    """The pixels ``(B, H * W, C)`` of an image ``(B, C, H, W)``."""
    return image.movedim(1, -1).flatten(1, 2)


def _border(image: Tensor, cut: Cut) -> Tensor:
    """Those of the border, ``(P, B, C)``."""
    return _pixels(image).index_select(1, cut.pixels).transpose(0, 1)


def _missing(taps: Tensor, cut: Cut) -> Tensor:
    """What a pixel of the border lacks of the sum of all ``taps: (T, out, in)``, ``(P, out, in)``."""
    return (cut.off @ taps.flatten(1)).reshape(-1, *taps.shape[1:])


def _applied(slopes: Tensor, taps: Tensor, cut: Cut | None) -> Tensor:
    """``M(q) d(q)`` for the ``taps: (T, out, in)``."""
    pixels = _pixels(slopes)
    found = (pixels.flatten(0, 1) @ taps.sum(0).mT).reshape(*pixels.shape[:2], -1)
    if cut is not None:
        lacking = _border(slopes, cut) @ _missing(taps, cut).mT
        found.index_add_(1, cut.pixels, lacking.transpose(0, 1), alpha=-1)
    return found.reshape(len(slopes), *slopes.shape[2:], -1).movedim(-1, 1)


def _bilinear(below: Tensor, above: Tensor, taps: Tensor, cut: Cut | None) -> Tensor:
    """The trace, for autograd to differentiate."""
    return _sum(above * _applied(below, taps, cut))


class _Trace(torch.autograd.Function):
    """The same with its gradient in closed form, which needs fewer images; autograd takes second derivatives."""

    @staticmethod
    def forward(ctx: Any, below: Tensor, above: Tensor, taps: Tensor, cut: Cut | None) -> Tensor:  # noqa: ANN401 -- torch's
        image = _applied(below, taps, cut)
        ctx.cut = cut
        ctx.save_for_backward(below, above, taps, image)
        return _sum(above * image)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 -- torch's
        below, above, taps, image = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _by_autograd(below, above, taps, ctx.cut, grad)
        weight = in_dtype(grad, above.dtype).reshape(-1, 1, 1, 1)
        weighted = above * weight
        by_taps = (_pixels(weighted).flatten(0, 1).mT @ _pixels(below).flatten(0, 1)).expand(*taps.shape)
        if ctx.cut is not None:
            there = _border(weighted, ctx.cut).mT @ _border(below, ctx.cut)
            by_taps = by_taps - (ctx.cut.off.mT @ there.flatten(1)).reshape(taps.shape)
        return _applied(weighted, taps.mT, ctx.cut), image * weight, by_taps, None


def _by_autograd(
    below: Tensor, above: Tensor, taps: Tensor, cut: Cut | None, grad: Tensor
) -> tuple[Tensor | None, ...]:
    inputs = [below, above, taps]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    found = iter(torch.autograd.grad(_bilinear(below, above, taps, cut), wanted, grad, create_graph=True))
    return *(next(found) if tensor.requires_grad else None for tensor in inputs), None
