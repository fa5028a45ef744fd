"""The spectral norm of dense layers and convolutions, from above."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowplug.lipschitz._norms import OperatorNorm


def symbol(weight: Tensor) -> tuple[Tensor, float]:
    r"""The matrices ``(F, out, in)`` of a convolution on a grid of frequencies, and a factor.

    .. math:: A(\omega) = \sum_k W_k e^{-i \omega k}, \qquad |W|_2 = \sup_\omega |A(\omega)|_2

    The supremum is the norm on an infinite image. Padding with zeros cuts a block out of that map, whatever the size
    of the image and of the padding, and circular padding samples the frequencies, so it bounds both at every size. For
    unit vectors u, v the real part of :math:`u^H A v`, times a phase, is a trigonometric sum of degree
    :math:`r = (k - 1) / 2` in each dimension. Around its maximum it stays above :math:`\cos(r (\omega - \omega_0))`
    times this, so N points a dimension miss at most a factor :math:`1 / \cos(\pi r / N)`, the one returned. It is 1.001
    for kernels of one dimension, 1.010 for two, 1.06 for three, whose grids would grow too large. A dense layer, and a
    convolution of a single tap, is one matrix, and the factor 1.

    Reference: Sedghi, Gupta, Long, "The Singular Values of Convolutional Layers", ICLR 2019, for circular padding; the
    inequality is that of Bernstein and Szegő.
    """
    kernel = weight.shape[2:]
    if math.prod(kernel) == 1:
        return weight.flatten(1).unsqueeze(0), 1.0
    density = 64 >> len(kernel)
    grid = [max(1, density * (size - 1)) for size in kernel]
    spectrum = torch.fft.rfftn(weight, s=grid, dim=tuple(range(2, weight.dim())))
    slack = math.cos(math.pi / (2 * density)) ** -sum(size > 1 for size in kernel)
    return spectrum.flatten(2).permute(2, 0, 1), slack


def select(stack: Tensor, index: Tensor) -> Tensor:
    """The matrix ``(out, in)`` of a stack ``(F, out, in)`` at a scalar index, without reading it from the device."""
    return stack.index_select(0, index.reshape(1)).squeeze(0)


def _gram_bounds(stack: Tensor, iterations: int) -> Tensor:
    """Upper bounds ``(*F,)`` on the spectral norms of matrices ``(*F, out, in)``."""
    tiny = torch.finfo(stack.dtype).tiny
    # The bound does not depend on this scale, nor on those below; they keep powers from over- and underflow.
    largest = stack.detach().abs().amax((-2, -1)).clamp(min=tiny)
    stack = stack / largest[..., None, None]
    gram = stack @ stack.mH if stack.shape[-2] < stack.shape[-1] else stack.mH @ stack
    # G_k = exp(log_scale) * gram, with gram kept at Frobenius norm 1.
    log_scale = torch.zeros_like(largest)
    for _ in range(iterations - 1):
        norm = torch.linalg.matrix_norm(gram).clamp(min=tiny)
        gram = gram / norm[..., None, None]
        gram = gram @ gram
        log_scale = 2 * (log_scale + norm.log())
    norm = torch.linalg.matrix_norm(gram).clamp(min=tiny)
    return largest * torch.exp((log_scale + norm.log()) / 2**iterations)


@dataclass(frozen=True)
class Gram(OperatorNorm):
    r"""The spectral norm, from above, by Gram iteration: a few matrix products, no state, no power iteration.

    .. math:: |W|_2 \le |G_t|_F^{1 / 2^t}, \qquad G_1 = W^T W, \quad G_{k+1} = G_k^2

    Unlike power iteration, which approaches the norm from below and lets a layer exceed its bound unnoticed, this is a
    certificate at every step. It exceeds the norm by a factor of at most ``min(shape) ** (1 / 2 ** (t + 1))``:
    0.95 % for 128 x 128 at the default. A convolution is measured at every frequency of a grid, on the smaller of its
    two sides, and differentiated at the one where it is largest.

    Reference: Delattre, Barthélemy, Araujo, Allauzen, "Efficient Bound of Lipschitz Constant for Convolutional Layers
    by Gram Iteration", ICML 2023.

    Args:
        iterations: The number :math:`t` of Gram matrices, at least 1.

    Raises:
        ValueError: ``iterations`` is below 1.

    Example:
        >>> bool(Gram().measure(torch.eye(3)) >= 1)
        True
    """

    iterations: int = 8

    def orders(self) -> tuple[float, float]:
        """From 2 to 2."""
        return 2.0, 2.0

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"Gram(iterations=...) must be at least 1; got {self.iterations}")

    def measure(self, weight: Tensor) -> Tensor:
        """The certified upper bound."""
        stack, slack = symbol(weight)
        if len(stack) == 1:
            return _gram_bounds(stack[0], self.iterations)
        top = _gram_bounds(stack.detach(), self.iterations).argmax()
        return slack * _gram_bounds(select(stack, top), self.iterations)


@dataclass(frozen=True)
class SVD(OperatorNorm):
    r"""The spectral norm by singular values: exact for dense layers, and for convolutions up to the grid's factor.

    .. math:: |W|_2 = \sigma_{\max}(W)

    Example:
        >>> SVD().measure(torch.eye(3))
        tensor(1.)
    """

    def orders(self) -> tuple[float, float]:
        """From 2 to 2."""
        return 2.0, 2.0

    def measure(self, weight: Tensor) -> Tensor:
        """The largest singular value, of all frequencies."""
        stack, slack = symbol(weight)
        top = torch.linalg.matrix_norm(stack.detach(), 2).argmax()
        norm: Tensor = torch.linalg.matrix_norm(select(stack, top), 2)
        return slack * norm
