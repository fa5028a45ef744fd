"""The derivative of convolutional networks in closed form."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from flowplug._precision import in_dtype
from flowplug._reading import transformed
from flowplug.lipschitz.networks._conv_trace import trace_of
from flowplug.lipschitz.networks._network import ClosedForm


class Adjoint:
    r"""The adjoint :math:`W^T` of a convolution of stride 1 that keeps the size of images: its kernel, turned.

    Args:
        weight: The kernel ``(out, in, k, k)``.
        circular: Whether images are padded by their other side, or by zeros.
    """

    def __init__(self, weight: Tensor, *, circular: bool) -> None:
        self._kernel = channels_last(weight.flip(2, 3).transpose(0, 1))
        before = (weight.shape[-1] - 1) // 2
        after = weight.shape[-1] - 1 - before
        self._padding, self._circular = (after, before), circular

    def __call__(self, v: Tensor) -> Tensor:
        """``W^T v`` for ``v: (B, out, H, W)``."""
        after, before = self._padding
        if after == before and not self._circular:
            return functional.conv2d(v, self._kernel, padding=after)
        if after:
            v = functional.pad(v, self._padding * 2, mode="circular" if self._circular else "constant")
        return functional.conv2d(v, self._kernel)


class ConvChain(ClosedForm):
    r"""The derivative :math:`J = W_n D_{n-1} W_{n-1} \cdots D_1 W_1 D_0` of a convolutional network, factor by factor.

    Args:
        y: ``g(x): (B, C, H, W)``.
        weights: The kernels :math:`W_l`.
        slopes: The diagonals of the :math:`D_l`, from l = 1 on, ``(B, C_l, H, W)``.
        entry: That of :math:`D_0`, or ``None`` for the identity.
        circular: Whether images are padded by their other side, or by zeros.
    """

    def __init__(
        self, y: Tensor, weights: Sequence[Tensor], slopes: Sequence[Tensor], entry: Tensor | None, *, circular: bool
    ) -> None:
        self.y, self._weights, self._slopes, self._entry, self._circular = y, weights, slopes, entry, circular
        self._adjoints = [Adjoint(weight, circular=circular) for weight in weights]

    def vjp(self, v: Tensor, *, create_graph: bool = False) -> Tensor:
        """``J^T v``, layer by layer."""
        with torch.set_grad_enabled(create_graph):
            *adjoints, last = self._adjoints
            product = last(v)
            for slope, adjoint in zip(reversed(self._slopes), reversed(adjoints), strict=True):
                product = adjoint(scaled(product, slope))
            if self._entry is not None:
                product = scaled(product, self._entry)
            return in_dtype(product.contiguous(), v.dtype)

    def select(self, index: Tensor | slice) -> ConvChain:
        """The same weights, the slopes of the rows in ``index``."""
        chain = copy.copy(self)
        chain.y, chain._slopes = self.y[index], [slope[index] for slope in self._slopes]
        chain._entry = None if self._entry is None else self._entry[index]
        return chain

    def trace(self) -> Tensor | None:
        """Linear in the slopes of one hidden layer, bilinear in those of two and a kernel of one pixel between."""
        if self._entry is not None:
            return None
        return trace_of(self._weights, self._slopes, circular=self._circular)


def channels_last(weight: Tensor) -> Tensor:
    """A kernel in the order of memory in which CPUs convolve in half the time, images and all that is made of them."""
    return weight if transformed() else weight.clone(memory_format=torch.channels_last)


def scaled(product: Tensor, slope: Tensor) -> Tensor:
    """The product, of one or several times as many rows, by the slopes; written on where no graph is built."""
    flat = product if len(product) == len(slope) else product.reshape(-1, *slope.shape)
    # Fresh memory of this size costs as much as what is computed in it.
    multiplied = flat * slope if torch.is_grad_enabled() or transformed() else flat.mul_(slope)
    return multiplied if multiplied.dim() == product.dim() else multiplied.flatten(0, 1)
