"""Norms induced by different p-norms of inputs and outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowplug._arguments import require_numbers
from flowplug._errors import LipschitzError, ShapeError
from flowplug._precision import at_least_single
from flowplug.branch import dual_order
from flowplug.lipschitz.norms._gram import Gram
from flowplug.lipschitz.norms._inf_norm import InfNorm, OneNorm
from flowplug.lipschitz.norms._operator_norm import OperatorNorm
from flowplug.lipschitz.norms._svd import SVD


def vector_norms(x: Tensor, inverse: Tensor) -> Tensor:
    """The norms ``(K,)`` of order ``1 / inverse`` of the rows of ``x: (K, L)``, differentiable in both."""
    size = x.abs()
    scale = size.detach().amax(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    # The largest entry contributes 1 to the sum, unless all are 0.
    sums = (size / scale).pow(1 / inverse).sum(1).clamp(min=1)
    return scale.squeeze(1) * sums.pow(inverse)


def induced_bound(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    r"""An upper bound on the norm from p to q, for ``a = 1 / p`` and ``b = 1 / q``, differentiable in all three.

    By the Riesz-Thorin theorem :math:`\log |W|_{p \to q}` is convex in (a, b). For :math:`p \le q` the point lies
    between (1/2, 1/2), the spectral norm, and one on the edges a = 1 or b = 0, where the norm has a closed form. For
    :math:`p > q` Hölder's inequality comes first,
    :math:`|W|_{p \to q} \le n^{1/r - 1/p} |W|_{r \to r} \, m^{1/q - 1/r}` with r in between, for an m x n matrix.
    """
    limits = torch.finfo(weight.dtype)

    def log(norm: Tensor) -> Tensor:
        return norm.clamp(min=limits.tiny).log()

    spectral, rows, columns = log(Gram().measure(weight)), weight.flatten(1), weight.transpose(0, 1).flatten(1)

    # How far the point is from (1/2, 1/2) on its way to the edge, and where it gets there. An order of 100 in place of
    # a larger one can only raise the norm.
    share = 2 * torch.maximum(a - 0.5, 0.5 - b)
    safe = share.clamp(min=limits.eps)
    to_columns = vector_norms(columns, (0.5 + (b - 0.5) / safe).clamp(0.01, 1)).amax()
    to_rows = vector_norms(rows, (0.5 - (a - 0.5) / safe).clamp(0.01, 1)).amax()
    edge = torch.where(a + b >= 1, log(to_columns), log(to_rows))
    upwards = (1 - share) * spectral + share * edge

    # Piecewise linear in 1 / r: the least of its values at the ends and at r = 2.
    middle = torch.stack([a, b, torch.full_like(a, 0.5).clamp(torch.minimum(a, b), torch.maximum(a, b))])
    share = (2 * middle - 1).abs()
    corner = torch.where(middle >= 0.5, log(OneNorm().measure(weight)), log(InfNorm().measure(weight)))
    m, n = weight.shape[:2]
    widths = (middle - a) * math.log(n) + (b - middle) * math.log(m)
    downwards = ((1 - share) * spectral + share * corner + widths).amin()

    return torch.where(b <= a, upwards, downwards).exp()


def check_kernel(weight: Tensor, *, same: bool) -> None:
    if weight.dim() > 2 and not same:
        raise LipschitzError(
            "the norm of a convolution from a p-norm to another q-norm depends on the size of the image: "
            "use one order for both (LearnedOrder(shared=True) for a network)"
        )


@dataclass(frozen=True)
class InducedNorm(OperatorNorm):
    r"""The norm induced by a p-norm of inputs and a q-norm of outputs.

    .. math:: |W|_{p \to q} = \sup_{x \ne 0} |W x|_q / |x|_p

    Exact for p = 1 (the largest q-norm of a column), q = inf (the largest dual norm of a row) and p = q = 2. Other
    orders are NP-hard: the power method, `estimate`, finds a local maximum, which may lie below the norm. Layers are
    therefore scaled by an upper bound, interpolated between the exact cases, so that a bound holds whatever the
    weights; on trained ones it is close (docs/benchmarks.md, "Norms from p to q").

    A network of such layers has to map back to the norm it starts from; pass it one norm per layer.

    Reference: Tropp, "Topics in Sparse Approximation", 2004, for the exact cases; Riesz, "Sur les maxima des formes
    bilinéaires et sur les fonctionnelles linéaires", Acta Math. 49, 1926, for the bound.

    Args:
        domain: The order p of the norm of inputs, in [1, inf].
        codomain: The order q of the norm of outputs, in [1, inf].

    Raises:
        LipschitzError: An order is below 1 or NaN, or a convolution is given two different ones.

    Example:
        >>> there, back = InducedNorm(domain=math.inf, codomain=2), InducedNorm(domain=2, codomain=math.inf)
        >>> g = LipschitzMLP(3, (64,), norm=(there, back))
        >>> lipschitz_bound(g).domain
        inf
    """

    domain: float
    codomain: float

    def __post_init__(self) -> None:
        require_numbers("InducedNorm", domain=self.domain, codomain=self.codomain)
        for order in (self.domain, self.codomain):
            if not order >= 1:
                raise LipschitzError(f"InducedNorm needs orders in [1, inf]; got {order}")

    def orders(self) -> tuple[float, float]:
        """From domain to codomain."""
        return self.domain, self.codomain

    def attach(self, weight: Tensor) -> OperatorNorm:
        """The norm itself."""
        check_kernel(weight, same=self.domain == self.codomain)
        return self

    def measure(self, weight: Tensor) -> Tensor:
        """The exact norm where it is known, else the upper bound."""
        p, q = self.domain, self.codomain
        weight = at_least_single(weight)
        if p == 1 or math.isinf(q):
            rows, order = (weight.transpose(0, 1), q) if p == 1 else (weight, dual_order(p))
            # At scale 1, for powers of tiny or huge weights under- or overflow.
            scale = weight.detach().abs().amax().clamp(min=torch.finfo(weight.dtype).tiny)
            norms: Tensor = torch.linalg.vector_norm((rows / scale).flatten(1), order, dim=1)
            return scale * norms.amax()
        if p == q == 2:
            return SVD().measure(weight)
        return induced_bound(weight, weight.new_full((), 1 / p), weight.new_full((), 1 / q))

    @torch.no_grad()
    def estimate(self, weight: Tensor, *, rtol: float = 1e-6, max_iterations: int = 1000) -> Tensor:
        r"""The norm by the power method, from below.

        .. math:: x \leftarrow \psi_{p'}(W^T \psi_q(W x)), \qquad \psi_r(z)_i \propto z_i |z_i|^{r-2}

        Starts from the best input of each output alone and from each input alone, and keeps the largest value found;
        no iteration lowers one. For p = q = 2 it is power iteration.

        Args:
            weight: A matrix ``(out_features, in_features)``.
            rtol: Relative change of all values at which to stop.
            max_iterations: Largest number of iterations.

        Returns:
            A lower bound on the norm, a scalar tensor.

        Raises:
            ShapeError: The weight is not a matrix.

        Reference: Boyd, "The Power Method for l^p Norms", Linear Algebra and its Applications 9, 1974.
        """
        if weight.dim() != 2:
            raise ShapeError(f"InducedNorm.estimate expects a matrix; got shape {tuple(weight.shape)}")
        dual = dual_order(self.domain)
        x = torch.cat([_steepest(weight.T, dual), torch.eye(weight.shape[1]).to(weight)], dim=1)
        found = weight.new_zeros(x.shape[1])
        for _ in range(max_iterations):
            y = weight @ x
            last, found = found, torch.linalg.vector_norm(y, self.codomain, dim=0)
            if bool((found - last <= rtol * found).all()):
                break
            x = _steepest(weight.T @ _steepest(y, self.codomain), dual)
        return found.amax()


def _steepest(z: Tensor, order: float) -> Tensor:
    """For each column of ``z: (K, S)`` the vector of dual norm 1 whose product with it is its norm of this order."""
    if math.isinf(order):
        # One entry, the largest.
        hot = torch.zeros_like(z).scatter_(0, z.abs().argmax(0, keepdim=True), 1)
        return hot * torch.where(z < 0, -1.0, 1.0)
    norms: Tensor = torch.linalg.vector_norm(z, order, dim=0)
    size = z.abs() / norms.clamp(min=torch.finfo(z.dtype).tiny)
    return torch.where(z < 0, -1.0, 1.0) * size.pow(order - 1)
