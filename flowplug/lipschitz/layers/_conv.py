"""Convolutions whose norm, as operators on images of any size, cannot exceed a bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from flowplug._arguments import (
    as_shape,
    require_bools,
    require_dtype,
    require_instance,
    require_ints,
    require_positive,
    require_shape,
)
from flowplug._errors import LipschitzError, ShapeError
from flowplug.branch import LipschitzBound, rule_for
from flowplug.lipschitz.layers._layer import Layer, LipschitzLayer
from flowplug.lipschitz.norms import Gram, NetworkNorm, OperatorNorm

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def check_convolution(module: Convolution) -> None:
    """Refuses convolutions whose operator is not that of their kernel alone, or some of its outputs, by a stride.

    Raises:
        LipschitzError: Groups or padding are not covered.
    """
    name = type(module).__name__
    if module.groups != 1:
        raise LipschitzError(f"{name} with groups={module.groups} has no known bound: use groups=1")
    if module.padding_mode not in ("zeros", "circular"):
        raise LipschitzError(
            f"{name} with padding_mode={module.padding_mode!r} has no known bound, as such padding repeats pixels: "
            "use 'zeros' or 'circular'"
        )
    if module.padding_mode == "circular" and not isinstance(module.padding, str):
        reach = [step * (size - 1) for step, size in zip(module.dilation, module.kernel_size, strict=True)]
        if any(2 * padding > most for padding, most in zip(module.padding, reach, strict=True)):
            raise LipschitzError(
                f"{name} with circular padding={module.padding} has no known bound, as it returns pixels twice: "
                f"pad at most dilation * (kernel_size - 1) = {tuple(reach)} on both sides together"
            )


class Conv(Layer):
    """A convolution as a `Layer`, of any norm; stands before torch's class of one, two or three dimensions."""

    out_channels: int
    _reversed_padding_repeated_twice: list[int]

    @property
    def width(self) -> int:
        """Number of output channels."""
        return self.out_channels

    def affine(self, x: Tensor, weight: Tensor, shift: Tensor | None) -> Tensor:
        """The map of ``(B, in_channels, *spatial)`` with this weight and a shift ``(out,)`` or ``(B, out)``.

        Raises:
            ShapeError: An image is smaller than what circular padding takes from its other side.
        """
        if getattr(self, "padding_mode") == "circular":  # noqa: B009 -- torch's class has it
            self._require_room(x)
        if shift is None or shift.dim() == 1:
            return self._conv_forward(x, weight, shift)  # type: ignore[operator,no-any-return]
        pixels = (1,) * (x.dim() - 2)
        return self._conv_forward(x, weight, None) + shift.reshape(*shift.shape, *pixels)  # type: ignore[operator,no-any-return]

    def _require_room(self, x: Tensor) -> None:
        spatial = x.dim() - 2
        # As torch holds it: of the last dimension first, before and behind.
        taken = [max(self._reversed_padding_repeated_twice[2 * i : 2 * i + 2]) for i in range(spatial)][::-1]
        if any(size < most for size, most in zip(x.shape[2:], taken, strict=True)):
            raise ShapeError(
                f"{type(self).__name__} pads by {tuple(taken)} pixels of the other side, and needs images of at least "
                f"as many; got {tuple(x.shape)}: use padding_mode='zeros', or a smaller kernel"
            )


class Conv2d(Conv, nn.Conv2d):
    """`Conv` of images."""


class LipschitzConv(LipschitzLayer, Conv):
    """What bounded convolutions of one, two and three dimensions share."""

    in_channels: int
    dimensions: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        *,
        padding: int | tuple[int, ...] | str = "same",
        dilation: int | tuple[int, ...] = 1,
        padding_mode: str = "zeros",
        bias: bool = True,
        bound: float = 0.97,
        norm: OperatorNorm = Gram(),  # noqa: B008 -- frozen and stateless
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._check_arguments(in_channels, out_channels, kernel_size, padding, dilation)
        require_instance(type(self).__name__, "padding_mode", padding_mode, str, "'zeros'")
        require_bools(type(self).__name__, bias=bias)
        require_dtype(type(self).__name__, dtype)
        options: dict[str, Any] = {"padding": padding, "dilation": dilation, "padding_mode": padding_mode}
        super().__init__(in_channels, out_channels, kernel_size, **options, bias=bias, device=device, dtype=dtype)
        check_convolution(cast(Convolution, self))
        self._limit(bound, norm)

    def _check_arguments(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        padding: int | tuple[int, ...] | str,
        dilation: int | tuple[int, ...],
    ) -> None:
        name = type(self).__name__
        pad = 0 if isinstance(padding, str) else padding
        require_ints(name, in_channels=in_channels, out_channels=out_channels)
        require_shape(name, kernel_size=kernel_size, padding=pad, dilation=dilation)
        require_positive(
            name, in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, dilation=dilation
        )
        for role, value in {"kernel_size": kernel_size, "padding": pad, "dilation": dilation}.items():
            if isinstance(value, Sequence) and len(value) != self.dimensions:
                raise ShapeError(f"{name}({role}=...) must be one number, or {self.dimensions}; got {value}")
        if min(as_shape(pad)) < 0:
            raise ShapeError(f"{name}(padding=...) must not be negative; got {padding}")

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(B, in_channels, *spatial)``, the batch optional, to ``(B, out_channels, *spatial)``."""
        spatial = self.weight.dim() - 2
        if x.dim() not in (spatial + 1, spatial + 2) or x.shape[-1 - spatial] != self.in_channels:
            raise ShapeError(
                f"{type(self).__name__} expects inputs (B, {self.in_channels}, {', '.join('HWD'[:spatial])}); "
                f"got {tuple(x.shape)}"
            )
        return self.affine(x, self.bounded_weight(), cast(Tensor | None, self.bias))


class LipschitzConv1d(LipschitzConv, nn.Conv1d):
    """`LipschitzConv2d` for sequences ``(B, channels, length)``.

    Example:
        >>> LipschitzConv1d(2, 4, 3)(torch.randn(5, 2, 9)).shape
        torch.Size([5, 4, 9])
    """

    dimensions = 1


class LipschitzConv2d(LipschitzConv, nn.Conv2d):
    r"""A convolution of stride 1 whose norm as an operator on images of any size is at most ``bound``.

    .. math:: y = \hat W * x + b, \qquad |\hat W * x| \le \text{bound} \, |x|

    The norm is that of the operator, not of the kernel reshaped to a matrix. In the 2-norm it is the largest over all
    frequencies, taken on a grid of 12 (k - 1) points a dimension, with a factor of at most 1.018 for what lies between
    them; it bounds zero padding of any width and circular padding alike. A kernel of one pixel is a matrix. Nothing
    depends on the image, so a state dict fits a fresh layer.

    On images with zero padding the certificate of `Gram` is within 2 % of the norm (docs/benchmarks.md, "Certificates
    of convolutions"); a block of `LipschitzCNN`, whose large kernels have one narrow side, spends a small share of its
    time on it (docs/benchmarks.md, "Cost of a bounded convolutional network").

    Args:
        in_channels: Number of channels of the input.
        out_channels: Number of channels of the output.
        kernel_size: Size of the kernel, for one or all dimensions.
        padding: Pixels added on each side, or ``"same"`` or ``"valid"``.
        dilation: Distance of the kernel's taps.
        padding_mode: ``"zeros"`` or ``"circular"``.
        bias: Whether to add a bias.
        bound: The largest norm allowed, a positive number.
        norm: The norm that is bounded: `Gram` (certified 2-norm), `SVD`, `PowerIteration`, `InfNorm`, `OneNorm`, and
            `InducedNorm` or `LearnedOrder` with equal orders for inputs and outputs.
        device: Where the parameters live.
        dtype: Their dtype.

    Raises:
        LipschitzError: ``bound`` is not a positive finite number, the norm is one from p to q, or the padding repeats
            pixels.
        ShapeError: The input has another number of channels.

    Example:
        >>> layer = LipschitzConv2d(3, 8, 3, bound=0.9)
        >>> layer(torch.randn(5, 3, 16, 16)).shape
        torch.Size([5, 8, 16, 16])
        >>> bool(lipschitz_bound(layer).value < 0.9001)
        True
    """

    dimensions = 2


class LipschitzConv3d(LipschitzConv, nn.Conv3d):
    """`LipschitzConv2d` for volumes ``(B, channels, height, width, depth)``.

    Example:
        >>> LipschitzConv3d(1, 2, 3)(torch.randn(5, 1, 4, 4, 4)).shape
        torch.Size([5, 2, 4, 4, 4])
    """

    dimensions = 3


@rule_for(LipschitzConv)
def _(module: LipschitzConv) -> LipschitzBound:
    return module.certify(module.bounded_weight())


@rule_for(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _(module: Convolution) -> LipschitzBound:
    check_convolution(module)
    return LipschitzBound(Gram().measure(module.weight), 2.0)


def conv_layer(
    inputs: int,
    outputs: int,
    kernel_size: int,
    bound: float,
    norm: OperatorNorm | NetworkNorm,
    padding_mode: Literal["zeros", "circular"],
) -> Layer:
    """A layer of images within ``bound``, or one that is left to the norm of its network."""
    if isinstance(norm, OperatorNorm):
        return LipschitzConv2d(inputs, outputs, kernel_size, bound=bound, norm=norm, padding_mode=padding_mode)
    layer = Conv2d(inputs, outputs, kernel_size, padding="same", padding_mode=padding_mode)
    check_convolution(layer)
    norm.initialize_(layer.weight)
    return layer
