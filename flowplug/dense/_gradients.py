"""Which direction the backward pass of an affine map leaves in its parameters' ``grad``."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flowplug._precision import at_least_single
from flowplug._reading import transformed


class Affine(NamedTuple):
    """One evaluation of ``y = W x + b`` and the gradients that came back to it.

    Attributes:
        weight: W, ``(D, D)``.
        bias: b, ``(D,)``; zeros if there is none.
        x: Inputs ``(B, D)``.
        y: Outputs ``(B, D)``.
        delta: Gradients of the loss with respect to y, ``(B, D)``.
        by_ladj: Gradient with respect to the log-det of W, a scalar: the sum over the batch.
    """

    weight: Tensor
    bias: Tensor
    x: Tensor
    y: Tensor
    delta: Tensor
    by_ladj: Tensor


class DenseGradient(Protocol):
    """Turns an evaluation, or the ordinary gradient, into the directions for W and b.

    Example:
        >>> Euclidean().precondition(torch.ones(2, 3), torch.eye(3))
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """

    def __call__(self, affine: Affine) -> tuple[Tensor, Tensor]:
        """``(D, D)`` and ``(D,)``, at the cost of vector-matrix products."""

    def precondition(self, gradient: Tensor, matrix: Tensor) -> Tensor:
        """The same from the ordinary gradient ``(*, D, D + 1)`` of ``[W, b]`` at ``[W, b; 0, 1]``."""


@dataclass(frozen=True)
class Relative:
    r"""The relative gradient: no inverse, and no product of D x D matrices.

    .. math:: \Delta \bar W = \nabla \bar W \, \bar W^T \bar W, \qquad
              \Delta W = \delta \, (y^T W) + s W, \qquad \Delta b = \delta \, (y^T b) + \delta + s b

    for the augmented matrix :math:`\bar W = [W, b; 0, 1]`, summed over the batch, with :math:`s = dL / d \log|\det W|`.
    The last row of the augmented matrix stays as it is. The published code leaves out :math:`s b`, and then settles at
    a wrong point on data that are not centred. It is a preconditioned direction of descent, not the gradient.

    Reference: Gresele, Fissore, Javaloy, Schölkopf, Hyvärinen, "Relative gradient optimization of the Jacobian term in
    unsupervised deep learning", NeurIPS 2020, eqs. (13)-(15), (32), (33).

    Example:
        >>> transform = DenseTransform(3, gradient=Relative())
    """

    def __call__(self, affine: Affine) -> tuple[Tensor, Tensor]:
        """``(D, D)`` and ``(D,)``."""
        weight, bias, _, y, delta, by_ladj = affine
        by_weight = _plus(delta.T @ (y @ weight), weight, by_ladj)
        return by_weight, delta.T @ (y @ bias) + delta.sum(0) + by_ladj * bias

    def precondition(self, gradient: Tensor, matrix: Tensor) -> Tensor:
        r"""The same from the ordinary gradient: :math:`\nabla \bar W \, \bar W^H \bar W`, shape ``(*, D, D + 1)``."""
        return gradient @ matrix.mH @ matrix


@dataclass(frozen=True)
class TransposedRelative:
    r"""The relative gradient from the other side: that of changes :math:`x \to (I + \epsilon) x + e` of the input.

    .. math:: \Delta W = W W^T \nabla W = W W^T \delta x^T + s W, \qquad
              \Delta b = W W^T \nabla b = W W^T \delta

    Here the log-det moves W alone, since such changes of x move its determinant by :math:`\epsilon` alone.

    Reference: as for `Relative`, section 4, "transposed relative gradient", which has no bias.

    Example:
        >>> transform = DenseTransform(3, gradient=TransposedRelative())
    """

    def __call__(self, affine: Affine) -> tuple[Tensor, Tensor]:
        """``(D, D)`` and ``(D,)``."""
        weight, _, x, _, delta, by_ladj = affine
        delta = (delta @ weight) @ weight.T
        return _plus(delta.T @ x, weight, by_ladj), delta.sum(0)

    def precondition(self, gradient: Tensor, matrix: Tensor) -> Tensor:
        r"""The same from the ordinary gradient: :math:`W W^H [\nabla W, \nabla b]`, shape ``(*, D, D + 1)``."""
        weight = matrix[..., :-1, :-1]
        return weight @ (weight.mH @ gradient)


@dataclass(frozen=True)
class Euclidean:
    r"""The ordinary gradient, :math:`\nabla W = \delta x^T + s W^{-T}` and :math:`\nabla b = \delta`.

    Costs an inverse, :math:`O(D^3)`; the reference for the other two.

    Example:
        >>> transform = DenseTransform(3, gradient=Euclidean())
    """

    def __call__(self, affine: Affine) -> tuple[Tensor, Tensor]:
        """``(D, D)`` and ``(D,)``."""
        inverse: Tensor = torch.linalg.inv(at_least_single(affine.weight)).to(affine.weight.dtype)
        return affine.delta.T @ affine.x + affine.by_ladj * inverse.T, affine.delta.sum(0)

    def precondition(self, gradient: Tensor, matrix: Tensor) -> Tensor:
        """The gradient itself."""
        del matrix
        return gradient


def _plus(products: Tensor, weight: Tensor, factor: Tensor) -> Tensor:
    """``products + factor W``, in ``products`` where that may be: a second D x D tensor costs a part of a step."""
    add = torch.addcmul if transformed() else Tensor.addcmul_
    total: Tensor = add(products, weight, factor)
    return total
