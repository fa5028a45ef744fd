r"""The frequencies at which convolutions are measured.

.. math:: A(\omega) = \sum_k W_k e^{-i \omega k}, \qquad |W|_2 = \sup_\omega |A(\omega)|_2

The supremum is the norm on an infinite image. Padding with zeros cuts a block out of that map, whatever the size of the
image and of the padding, and circular padding samples the frequencies, so it bounds both at every size. For unit
vectors u, v the real part of :math:`u^H A v`, times a phase, is a trigonometric sum of degree :math:`r = (k - 1) / 2`
in each dimension. Around its maximum it stays above :math:`\cos(r (\omega - \omega_0))` times this, so N points a
dimension miss at most a factor :math:`1 / \cos(\pi r / N)`. It is 1.001 for kernels of one dimension, 1.018 for two,
1.06 for three, whose grids would grow too large.

Reference: Sedghi, Gupta, Long, "The Singular Values of Convolutional Layers", ICLR 2019, for circular padding; the
inequality is that of Bernstein and Szegő.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_DENSITY = {1: 32, 2: 12, 3: 8}


def points(kernel: Sequence[int]) -> list[int]:
    """How many frequencies the grid has in each dimension; of the last one, half of them tell all."""
    return [max(1, _DENSITY[len(kernel)] * (size - 1)) for size in kernel]


def slack(kernel: Sequence[int]) -> float:
    """By what factor the norm may exceed the largest one on the grid."""
    return math.cos(math.pi / (2 * _DENSITY[len(kernel)])) ** -sum(size > 1 for size in kernel)


def at_frequency(weight: Tensor, index: Tensor) -> Tensor:
    """The matrix ``(out, in)`` of a kernel at one frequency, of which the index is not read from the device."""
    wave = _waves(tuple(weight.shape[2:]), weight).taps.index_select(0, index.reshape(1)).squeeze(0)
    return weight.flatten(2).to(wave.dtype) @ wave


def grams(weight: Tensor) -> Tensor:
    r"""The matrices :math:`A(\omega) A(\omega)^H`, or :math:`A^H A` where that is smaller, ``(F, n, n)``.

    From the products of taps, :math:`\sum_{k,l} W_k W_l^T e^{-i \omega (k - l)}`: of a kernel with a narrow side these
    are far fewer numbers than its matrices at all frequencies.
    """
    waves = _waves(tuple(weight.shape[2:]), weight)
    taps = weight.flatten(2)
    taps = (taps.transpose(0, 1) if taps.shape[0] > taps.shape[1] else taps).permute(2, 0, 1)  # (T, n, m)
    count, side, _ = taps.shape
    flat = taps.flatten(0, 1)
    products = (flat @ flat.T).reshape(count, side, count, side).transpose(1, 2).reshape(count**2, side**2)
    by_lag = waves.pairs @ products
    real, imaginary = (part @ by_lag for part in waves.lags)
    return torch.complex(real, -imaginary).reshape(-1, side, side)


class _Waves(NamedTuple):
    r"""What there is to know of every frequency of the grid.

    Attributes:
        taps: :math:`e^{-i \omega k}` at the places k of the T taps, ``(F, T)``.
        lags: Cosines and sines at all differences of two places, ``(F, L)``.
        pairs: Which pairs of taps have each difference, 1 or 0, ``(L, T * T)``: on GPUs, sums that repeat.
    """

    taps: Tensor
    lags: tuple[Tensor, Tensor]
    pairs: Tensor


def _waves(kernel: tuple[int, ...], like: Tensor) -> _Waves:
    # The compiler looks through a cache: to it they are constants. Those made in a mode of torch's dispatcher, as of
    # fake tensors, hold outside of it no longer.
    alone = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    return (_made if alone else _kept)(kernel, like.dtype, like.device)


@functools.lru_cache
def _kept(kernel: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> _Waves:
    # What is kept from inference mode could not be differentiated later. The compiler does not know the keyword.
    with torch.inference_mode(False):  # noqa: FBT003
        return _made(kernel, dtype, device)


def _made(kernel: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> _Waves:
    def grid(*axes: Tensor) -> Tensor:
        return torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")], 1)

    def line(start: int, stop: int) -> Tensor:
        return torch.arange(start, stop, dtype=torch.float64, device=device)

    counts = points(kernel)
    *others, last = (2 * math.pi * line(0, count) / count for count in counts)
    frequencies = grid(*others, last[: counts[-1] // 2 + 1])
    places = grid(*(line(0, size) for size in kernel))
    differences = grid(*(line(1 - size, size) for size in kernel))
    steps = (places.unsqueeze(1) - places.unsqueeze(0)).flatten(0, 1)
    lag = torch.zeros_like(steps[:, 0])
    for axis, size in enumerate(kernel):
        lag = lag * (2 * size - 1) + steps[:, axis] + size - 1

    def waves(at: Tensor) -> tuple[Tensor, Tensor]:
        angles = frequencies @ at.T
        return angles.cos().to(dtype), angles.sin().to(dtype)

    cosine, sine = waves(places)
    pairs = (lag == line(0, len(differences)).unsqueeze(1)).to(dtype)
    return _Waves(torch.complex(cosine, -sine), waves(differences), pairs)
