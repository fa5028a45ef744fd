"""How the gradient of a power series is obtained from its products; either way the value is the log-det."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flowplug._branch import VectorJacobianProduct


class Gradient(Protocol):
    """Sums one weighted power series of ``v^T log(I + J) v`` and attaches a gradient."""

    def __call__(self, vjp: VectorJacobianProduct, v: Tensor, weights: Sequence[float]) -> Tensor:
        """The series ``(B,)`` for probes ``v: (B, *event)`` and term weights ``c_1 ... c_n``, n >= 1."""


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


@dataclass(frozen=True)
class Autograd:
    r"""Differentiates the series term by term; memory grows with the number of terms.

    .. math:: \sum_{k=1}^{n} \frac{(-1)^{k+1} c_k}{k} v^T J^k v

    Example:
        >>> logdet = PowerSeries(gradient=Autograd())
    """

    def __call__(self, vjp: VectorJacobianProduct, v: Tensor, weights: Sequence[float]) -> Tensor:
        """The series and, through autograd, its gradient."""
        total, product = v.new_zeros(len(v)), v
        for k, weight in enumerate(weights, 1):
            product = vjp(product, create_graph=torch.is_grad_enabled())
            total = total + (-1) ** (k + 1) * weight / k * _dot(product, v)
        return total


@dataclass(frozen=True)
class Neumann:
    r"""The gradient as a Neumann series of its own; only the last product has a graph.

    .. math:: \nabla \log\det(I + J) = E\big[u^T (\nabla J) v\big], \qquad
              u^T = \sum_{k=0}^{n-1} (-1)^k c_{k+1} v^T J^k

    The value is the log-det series :math:`\sum_k (-1)^{k+1} c_k a_k / k` with :math:`a_k = v^T J^k v`, from the same n
    products: n - 1 of them are formed one by one, and :math:`u^T J v = \sum_k (-1)^{k+1} c_k a_k` holds the last.
    Value and gradient are each unbiased; each sample's gradient scales with its own weight in the loss.

    Reference: Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling", NeurIPS 2019,
    Theorem 2, whose published code returns :math:`u^T J v` itself in place of the log-det.

    Example:
        >>> logdet = PowerSeries(gradient=Neumann())
    """

    def __call__(self, vjp: VectorJacobianProduct, v: Tensor, weights: Sequence[float]) -> Tensor:
        """The series, with the Neumann gradient attached."""
        n = len(weights)
        value, product, u = v.new_zeros(len(v)), v, weights[0] * v
        for k, (weight, following) in enumerate(itertools.pairwise(weights), 1):
            product = vjp(product)
            value = value + (1 / k - 1 / n) * (-1) ** (k + 1) * weight * _dot(product, v)
            u = u + (-1) ** k * following * product
        surrogate = _dot(vjp(u, create_graph=torch.is_grad_enabled()), v)
        value = value + surrogate.detach() / n
        return value + (surrogate - surrogate.detach())
