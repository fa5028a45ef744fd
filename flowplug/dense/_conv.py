"""Convolutions with unconstrained kernels: a matrix per pixel, or a matrix per frequency."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowplug._arguments import require_ints, require_part, require_positive
from flowplug._errors import ShapeError, SingularMatrixError
from flowplug._functions import Function
from flowplug._precision import at_least_single
from flowplug._reading import known, transformed
from flowplug._transform import Transform
from flowplug.dense._affine import once
from flowplug.dense._arguments import GRADIENTS, elementwise, own, started
from flowplug.dense._gradients import DenseGradient, Relative
from flowplug.dense._transform import DenseTransform, require_invertible


class DenseConv1x1(DenseTransform):
    r"""An invertible 1x1 convolution: `DenseTransform` applied to the channels of every pixel.

    .. math:: y_p = \sigma(W x_p + b), \qquad
              \mathrm{ladj} = H W_{\mathrm{px}} \log|\det W| + \sum_{p, i} \log \sigma'((W x_p + b)_i)

    Events are images ``(C, H, W)`` of any size. The arguments are those of `DenseTransform`, with C for D.

    Reference: Kingma, Dhariwal, "Glow: Generative flow with invertible 1x1 convolutions", NeurIPS 2018, section 3.2;
    the gradient as in `DenseTransform`.

    Raises:
        ShapeError: The number of channels is below 1, or an input has another.
        SingularMatrixError: W is singular to working precision.

    Example:
        >>> y, ladj = DenseConv1x1(3)(torch.randn(5, 3, 8, 8))
        >>> y.shape, ladj.shape
        (torch.Size([5, 3, 8, 8]), torch.Size([5]))
    """

    event_dim = 3

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        y, ladj = super()._forward(x.movedim(-3, -1), context)
        return y.movedim(-1, -3), ladj.sum((-2, -1))

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, ladj = super()._inverse(y.movedim(-3, -1), context)
        return x.movedim(-1, -3), ladj.sum((-2, -1))

    def _vectors(self, x: Tensor) -> Tensor:
        return super()._vectors(x.movedim(-3, -1))


class CircularConv2d(Transform):
    r"""An invertible k x k convolution with circular padding: a matrix per Fourier frequency.

    .. math:: y = \sigma(w * x + b), \qquad \log|\det(w *)| = \sum_f \log|\det \hat w(f)|

    Events are images ``(C, H, W)`` of any size from k on. The log-det is exact; it costs an LU decomposition of a C x C
    matrix per frequency, :math:`O(H W C^3)` a batch, next to :math:`O(B H W C^2 k^2)` of the convolution.

    The gradient with respect to the kernel is preconditioned as in `DenseTransform`, frequency by frequency,
    :math:`\hat G \mapsto \hat G \hat w^H \hat w` with the bias in an augmented matrix at pixel 0, and cut to the k x k
    taps. That is the relative gradient for k = H = W and for k = 1 (where it equals that of `DenseConv1x1`), and a
    direction of descent for every k: a symmetric positive definite matrix times the gradient.

    Reference: the determinant, Hoogeboom, van den Berg, Welling, "Emerging convolutions for generative normalizing
    flows", ICML 2019, section 3.2. Relative gradients of convolutions are ours.

    Args:
        channels: Number of channels C.
        kernel_size: Side k of the kernel.
        activation: An element-wise transform such as `SmoothLeakyReLU`; ``None`` for the bare map.
        bias: Whether there is a b, one per channel.
        gradient: `Relative`, `TransposedRelative` or `Euclidean`.
        init: Fills the middle tap ``(C, C)`` in place; all others start at 0.

    Raises:
        ShapeError: ``channels`` or ``kernel_size`` is below 1, an image is smaller than the
            kernel or has other channels; of the activation, as in `DenseTransform`.
        SingularMatrixError: The matrix of a frequency is singular to working precision.
        SecondDerivativeError: A derivative by w or b, from `forward`, is differentiated again.

    Example:
        >>> y, ladj = CircularConv2d(3, kernel_size=5)(torch.randn(5, 3, 8, 8))
        >>> y.shape, ladj.shape
        (torch.Size([5, 3, 8, 8]), torch.Size([5]))
    """

    event_dim = 3

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        *,
        activation: Transform | None = None,
        bias: bool = True,
        gradient: DenseGradient = Relative(),  # noqa: B008 -- frozen
        init: Callable[[Tensor], object] | None = None,
    ) -> None:
        super().__init__()
        require_ints("CircularConv2d", channels=channels, kernel_size=kernel_size)
        require_positive("CircularConv2d", channels=channels, kernel_size=kernel_size)
        size = kernel_size
        elementwise("CircularConv2d", activation, channels)
        require_part("CircularConv2d", "gradient", gradient, "precondition", GRADIENTS)
        self.event_shape = (channels, None, None)
        self.before = (size - 1) // 2  # taps before the middle one
        self.weight = nn.Parameter(torch.zeros(channels, channels, size, size))
        with torch.no_grad():
            self.weight[:, :, self.before, self.before] = started("CircularConv2d", init, channels)
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.activation, self.gradient = own(activation), gradient

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        # The compiler follows classes that it finds by name.
        function = _Traced.apply if torch.compiler.is_compiling() else _Preconditioned.run
        weight, bias = function(self.weight, self._shift(), self, self._size(x))
        after = self.weight.shape[-1] - 1 - self.before
        padded = functional.pad(x.reshape(-1, *x.shape[-3:]), (self.before, after, self.before, after), mode="circular")
        y = functional.conv2d(padded, weight, bias).to(weight.dtype).reshape(x.shape)
        ladj = self._logabsdet(self.spectrum(weight, self._size(x)), x).expand(x.shape[:-3])
        if self.activation is None:
            # Hosts add to log-dets in place: every sample gets an entry of its own.
            return y, ladj.clone()
        y, other = self.activation(y.movedim(-3, -1), context)
        return y.movedim(-1, -3), ladj + other.sum((-2, -1))

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        other: Tensor | float = 0.0
        if self.activation is not None:
            y, ladj = self.activation.inverse(y.movedim(-3, -1), context)
            y, other = y.movedim(-1, -3), ladj.sum((-2, -1))
        size = self._size(y)
        spectrum = self.spectrum(self.weight, size)
        scales = torch.linalg.svdvals(spectrum.detach())
        require_invertible(self, scales.amax() / scales.amin())
        ladj = self._logabsdet(spectrum, y).expand(y.shape[:-3])
        images = (y - self._shift()[:, None, None]).reshape(-1, *y.shape[-3:])
        if len(images):  # some FFT libraries refuse empty batches
            waves = torch.fft.rfft2(at_least_single(images)).permute(2, 3, 1, 0)
            images = torch.fft.irfft2(torch.linalg.solve(spectrum, waves).permute(3, 2, 0, 1), s=size).to(y.dtype)
        return images.reshape(y.shape), other - ladj

    def spectrum(self, weight: Tensor, size: tuple[int, int]) -> Tensor:
        """The matrices ``(H, W // 2 + 1, C, C)`` of a kernel at the frequencies of real images of that size."""
        taps = functional.pad(at_least_single(weight), (0, size[1] - weight.shape[-1], 0, size[0] - weight.shape[-2]))
        taps = taps.roll((-self.before, -self.before), dims=(-2, -1))
        # Networks correlate, w * x = sum_t w(t) x(p + t), hence the conjugate.
        spectrum: Tensor = torch.fft.rfft2(taps).conj()
        return spectrum.permute(2, 3, 0, 1)

    def taps(self, spectrum: Tensor, size: tuple[int, int]) -> Tensor:
        """The k x k middle of the kernel with that spectrum; the inverse of `spectrum`."""
        taps: Tensor = torch.fft.irfft2(spectrum.permute(2, 3, 0, 1).conj(), s=size)
        taps = taps.roll((self.before, self.before), dims=(-2, -1))
        return taps[..., : self.weight.shape[-2], : self.weight.shape[-1]]

    def directions(
        self, weight: Tensor, bias: Tensor, by_weight: Tensor, by_bias: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Kernel and bias from their ordinary gradients, as ``gradient`` preconditions them."""
        spectrum, by_spectrum = self.spectrum(weight, size), self.spectrum(by_weight, size)
        # A shift at pixel 0 has the same coefficient at every frequency.
        column, by_column = (b.to(spectrum).expand(spectrum.shape[:-1])[..., None] for b in (bias, by_bias))
        last = torch.zeros_like(spectrum[..., :1, :])
        matrix = torch.cat(
            [torch.cat([spectrum, column], -1), torch.cat([last, torch.ones_like(last[..., :1])], -1)], -2
        )
        direction = self.gradient.precondition(torch.cat([by_spectrum, by_column], -1), matrix)
        by_weight = self.taps(direction[..., :-1], size).to(weight.dtype)
        by_bias = torch.fft.irfft2(direction[..., -1].permute(2, 0, 1), s=size)[:, 0, 0]
        return by_weight, by_bias.to(bias.dtype)

    def _logabsdet(self, spectrum: Tensor, x: Tensor) -> Tensor:
        logabsdets: Tensor = torch.linalg.slogdet(spectrum).logabsdet
        finite = logabsdets.isfinite()
        if torch.compiler.is_compiling():
            torch._assert_async(finite.all(), "a CircularConv2d is singular or not finite")
        elif self.training and finite.is_cuda and not transformed():
            message = f"CircularConv2d({self.extra_repr()}) was singular or not finite in the last pass"
            self._require_later(finite.all(), message, SingularMatrixError)
        elif known(finite.all()) is False:
            raise SingularMatrixError(
                f"CircularConv2d({self.extra_repr()}) is singular or not finite at {int((~finite).sum())} of "
                f"{finite.numel()} frequencies"
            )
        # Of each pair of conjugate frequencies one is stored; the first column, and the last of an even width, pair up
        # within themselves.
        total: Tensor = 2 * logabsdets.sum() - logabsdets[:, 0].sum()
        return (total - logabsdets[:, -1].sum() if x.shape[-1] % 2 == 0 else total).to(x.dtype)

    def _size(self, x: Tensor) -> tuple[int, int]:
        size = (x.shape[-2], x.shape[-1])
        if min(size) < self.weight.shape[-1]:
            raise ShapeError(
                f"CircularConv2d({self.extra_repr()}) needs images at least as large as its kernel; got {size} pixels"
            )
        return size

    def _shift(self) -> Tensor:
        return self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias

    def extra_repr(self) -> str:
        """Names sizes and strategies."""
        channels, _, size, _ = self.weight.shape
        return f"{channels}, kernel_size={size}, bias={self.bias is not None}, gradient={self.gradient}"


class _Preconditioned(Function):
    """The kernel and bias as they are; their gradients preconditioned."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, bias: Tensor, conv: CircularConv2d, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        del conv, size
        return weight.view_as(weight), bias.view_as(bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
        del output
        weight, bias, ctx.conv, ctx.size = inputs
        ctx.save_for_backward(weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        conv: CircularConv2d = ctx.conv
        weight, bias = ctx.saved_tensors
        # The directions of kernel and bias mix the gradients of both; a frozen one has none.
        by_weight, by_bias = (
            grad if needed else torch.zeros_like(grad)
            for grad, needed in zip(grads, ctx.needs_input_grad[:2], strict=True)
        )
        with torch.no_grad():
            directions = conv.directions(weight, bias, by_weight, by_bias, ctx.size)
        by_weight, by_bias = (once(direction, weight, bias, *grads, name="CircularConv2d") for direction in directions)
        return by_weight, by_bias, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        weight, bias, *_ = tangents
        return weight.view_as(weight), bias.view_as(bias)


class _Traced(_Preconditioned):
    jvp = staticmethod(torch.autograd.Function.jvp)
