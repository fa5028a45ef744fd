"""The log-det by projection on Krylov spaces."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from flowplug._precision import at_least_single, full_precision, in_dtype
from flowplug.logdet._control import Control, ExactTrace
from flowplug.logdet._lengths import Geometric
from flowplug.logdet._neumann import Neumann
from flowplug.logdet._probes import Probes, Rademacher
from flowplug.logdet._recurrence import Recurrence
from flowplug.logdet._series import Gradient, Series
from flowplug.logdet._terms import Roulette, Terms

_SMALLEST_PIVOT = 1e-3


@dataclass(frozen=True)
class Krylov(Series):
    r"""The stochastic log-det from the same products as `PowerSeries`, mostly with far less variance for them.

    .. math:: \log\det(I + J) = E \int_0^1 v^T J^T u_t \, dt, \qquad (I + t J^T) u_t = v, \qquad
              \nabla \log\det(I + J) = E[u_1^T (\nabla J) v]

    With k products, :math:`u_t` is the Galerkin solution in the Krylov space :math:`K_k(J^T, v)` plus its residual,
    found by Arnoldi's method for all t at once: the space does not depend on t. Its error shrinks far faster than the
    :math:`\rho^k` of a power series with spectral radius :math:`\rho`, and vanishes for k = D.

    `Roulette` debiases any converging sequence: with :math:`Y_k \to Y`, :math:`Y_0 = 0` and N independent of the Y,

    .. math:: E \sum_{k=1}^{N} \frac{Y_k - Y_{k-1}}{P(N \ge k)}
              = \sum_{k=1}^{\infty} P(N \ge k) \frac{Y_k - Y_{k-1}}{P(N \ge k)} = Y,

    for the value and for u alike, with the variance

    .. math:: \sum_{k=0}^{\infty} \Big(\frac{1}{P(N \ge k + 1)} - \frac{1}{P(N \ge k)}\Big) E |Y - Y_k|^2

    beyond that of Y. As :math:`Y_k = Y` for :math:`k \ge D`, it is finite whatever :math:`\rho`, but large where P
    falls faster than the squared error. For symmetric J with eigenvalues in :math:`[-L, L]` that falls by :math:`r^2` a
    term for u and :math:`r^4` for the value, with :math:`r = (\sqrt\kappa - 1) / (\sqrt\kappa + 1)` and :math:`\kappa =
    (1 + L) / (1 - L)`: with the default's survival of 0.25 the sum converges in any dimension up to L = 0.8 for the
    gradient, and to L = 0.94 for the value. Beyond, and for eigenvalues on a circle, where a projection gains little on
    the powers, 2 products and little more are too few: a smaller p, or `Certified` as in `PowerSeries`, takes more, and
    mostly has less noise than `PowerSeries` has with them (docs/benchmarks.md, "Roulettes and spectra").

    The matrices :math:`I + t H_k` are eliminated without pivoting, which is safe for contractions in the 2-norm. Under
    other norms the space may have Ritz values left of -1; a sample for which a pivot comes close to 0 goes on, from
    there, with the power series of its residual, which converges for every :math:`\rho < 1` (on trained flows hardly
    any: docs/benchmarks.md, "Pivots close to zero").

    The default is 2 products and, for an eighth of the rows, more with survival 0.25: with far less variance as dear as
    survival 0.15 for all, which trained best at equal time (docs/benchmarks.md, "Roulettes at equal time").

    Reference: Saad, "Iterative Methods for Sparse Linear Systems", 2003, algorithm 6.4 (full orthogonalisation), used
    here in Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling", NeurIPS 2019,
    Lemma 3 and Theorem 2.

    Args:
        terms: `Roulette`, `Converged` or `Truncated`.
        probes: `Rademacher`, `Gaussian` or `Orthogonal`.
        gradient: `Neumann`, or `Recompute` of it.
        control: `ExactTrace`, or ``None``.

    Raises:
        TypeError: ``gradient`` differentiates term by term, which a projection cannot.

    Example:
        >>> transform = ResidualTransform(LipschitzMLP(100), logdet=Krylov(terms=Converged(rtol=1e-4)))
    """

    terms: Terms = Roulette(Geometric(0.75, share=0.5), exact=2)  # noqa: RUF009 -- frozen
    probes: Probes = Rademacher()  # noqa: RUF009
    gradient: Gradient = Neumann()  # noqa: RUF009
    control: Control | None = ExactTrace()  # noqa: RUF009

    def start(self, v: Tensor) -> Recurrence:
        """The series at :math:`v^T J v`."""
        return _Arnoldi(v)


class _Arnoldi(Recurrence):
    r"""Arnoldi's method, with :math:`I + t H_k = L U` at all nodes t, the last of which is t = 1.

    With :math:`J^T V_k = V_k H_k + h_{k+1,k} v_{k+1} e_k^T`, :math:`f = L^{-1} e_1` and :math:`P = V U^{-1}`, the
    Galerkin solution plus its residual is :math:`|v| (\sum_{j \le k} f_j p_j + f_{k+1} v_{k+1})`. Each term changes it
    by :math:`|v| (f_k (p_k - v_k) + f_{k+1} v_{k+1})`. The inner product of that with :math:`J v` needs
    :math:`a_j = v_1^T J^T v_j`, of which :math:`a_{k+1}` waits for the next product, and
    :math:`b_j = v_1^T J^T p_j`, that is :math:`b = a U^{-1}`.
    """

    STATE = ("_norm", "_basis", "_solution", "_lower", "_products", "_f", "_ratio", "_sound")

    def __init__(self, v: Tensor) -> None:
        flat = at_least_single(v.flatten(1))
        t, _ = _quadrature(flat.dtype, v.device)
        self._norm = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        first = flat / self._norm.clamp(min=torch.finfo(flat.dtype).tiny)
        self._basis = [first]  # v_j
        self._solution: list[Tensor] = []  # p_j at t = 1
        self._lower: list[Tensor] = []  # the subdiagonal of L
        self._products: list[Tensor] = []  # b_j
        self._f = flat.new_ones(len(v), 1)  # f_k at t = 1
        self._ratio = flat.new_ones(len(v), len(t))  # f_k(t) / f_k(1)
        self._sound = torch.ones_like(self._f)  # 0 where a pivot came close to 0, else 1
        self.vector, self.u = in_dtype(first.reshape(v.shape), v.dtype), v
        self.known, self.waiting = v.new_zeros(len(v), 2), in_dtype(self._norm.square().expand(-1, 2), v.dtype)

    @property
    def residual(self) -> Tensor:
        """That of the Galerkin solution at t = 1."""
        return self._f.abs().squeeze(1)

    def advance(self, product: Tensor) -> Tensor:
        """One step of Arnoldi's method, one column of U, and the term that follows from them."""
        with full_precision(product):
            a, column, following, size = self._expand(product.flatten(1))
            settled = in_dtype(a * self.waiting, self.vector.dtype)
            pivot, b, p = self._eliminate(a, column)
            self._correct(a, b, p, pivot, following, size)
        t = _quadrature(size.dtype, size.device)[0]
        self._lower = [*self._lower, size * t / pivot]
        self._basis = [*self._basis, following]
        self._solution, self._products = [*self._solution, p], [*self._products, b]
        return settled

    def _expand(self, w: Tensor) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        """The next vector of the basis from a product ``w: (R, D)``.

        Returns:
            a_k ``(R, 1)``, the entries of column k of L^-1 t H ``(R, nodes)``, the vector v_{k+1} ``(R, D)``, zero for
            an invariant subspace, and h_{k+1,k} ``(R, 1)``.
        """
        rounding, w = torch.finfo(w.dtype).eps, at_least_single(w)
        t = _quadrature(w.dtype, w.device)[0]
        h, rest = _orthogonalize(w, self._basis)
        again, rest = _orthogonalize(rest, self._basis)  # against rounding
        column: list[Tensor] = []
        for j, (one, other) in enumerate(zip(h, again, strict=True)):
            entry = (one + other) * t
            column.append(torch.addcmul(entry, self._lower[j - 1], column[-1], value=-1) if j else entry)
        # A row without sound pivots subtracts no projection: powers of J^T from here on.
        self._sound = self._sound * (column[-1].amin(1, keepdim=True) > _SMALLEST_PIVOT - 1)
        rest = torch.where(self._sound.bool(), rest, w)
        size = torch.linalg.vector_norm(rest, dim=1, keepdim=True)
        # An invariant subspace: what is left is rounding, and the approximation exact.
        broken = size <= 10 * rounding * torch.linalg.vector_norm(w, dim=1, keepdim=True)
        size = size.masked_fill(broken, 0.0)
        following = rest * (size / size.square().clamp(min=torch.finfo(size.dtype).tiny))
        return h[0], [entry * self._sound for entry in column], following, size

    def _eliminate(self, a: Tensor, column: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The pivot u_kk and b_k, ``(R, nodes)``, and p_k ``(R, D)`` at t = 1."""
        *above, last = column
        pivot, b, p = 1 + last, a, self._basis[-1]
        for j, entry in enumerate(above):
            b = torch.addcmul(b, self._products[j], entry, value=-1)
            p = torch.addcmul(p, self._solution[j], entry[:, -1:], value=-1)
        return pivot, b / pivot, p / pivot[:, -1:]

    def _correct(self, a: Tensor, b: Tensor, p: Tensor, pivot: Tensor, following: Tensor, size: Tensor) -> None:
        """What the new pair changes of the solution: the next term."""
        t, rules = _quadrature(a.dtype, a.device)
        square, f, like = self._norm.square(), self._f, self.vector
        self.known = in_dtype(square * f * ((self._ratio * (b - a)) @ rules), like.dtype)
        self._f = -size * f / pivot[:, -1:]
        self._ratio = self._ratio * t * (pivot[:, -1:] / pivot)
        self.waiting = in_dtype(square * self._f * (self._ratio @ rules), like.dtype)
        u = self._norm * (f * (p - self._basis[-1]) + self._f * following)
        self.u = in_dtype(u.reshape(like.shape), like.dtype)
        self.vector = in_dtype(following.reshape(like.shape), like.dtype)


def _orthogonalize(w: Tensor, basis: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Coefficients ``(R, 1)`` and remainder ``(R, D)`` of w in the basis, one vector after the other."""
    h = []
    for vector in basis:
        h.append(torch.linalg.vecdot(w, vector).unsqueeze(1))
        w = torch.addcmul(w, vector, h[-1], value=-1)
    return h, w


def _rules(count: int) -> tuple[list[float], list[list[float]]]:
    """Nodes on [0, 1], the last of them 1, and two weights for each: of the integral, and of the value at 1.

    Gauss-Legendre by the eigenvalues of its Jacobi matrix (Golub, Welsch 1969), in s with t = 1 - s^2, which moves the
    nodes to t = 1, near which integrands of strong contractions are steep.
    """
    k = torch.arange(1, count, dtype=torch.float64, device="cpu")
    off_diagonal = torch.diag(k / (4 * k * k - 1).sqrt(), 1)
    nodes, vectors = torch.linalg.eigh(off_diagonal + off_diagonal.T)
    s = (nodes + 1) / 2
    weights = (2 * s * vectors[0].square()).tolist()
    return [*(1 - s.square()).tolist(), 1.0], [*([weight, 0.0] for weight in weights), [0.0, 1.0]]


_COARSE: Final = _rules(16)
_FINE: Final = _rules(40)


def _quadrature(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The nodes ``(nodes,)`` and rules ``(nodes, 2)``."""
    # The compiler looks through a cache: to it they are constants.
    return _tensors(dtype, device) if torch.compiler.is_compiling() else _kept(dtype, device)


@functools.lru_cache
def _kept(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    # What is kept from inference mode could not be differentiated later. The compiler does not know the keyword.
    with torch.inference_mode(False):  # noqa: FBT003
        return _tensors(dtype, device)


def _tensors(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    nodes, rules = _FINE if dtype == torch.float64 else _COARSE
    return torch.tensor(nodes, dtype=dtype, device=device), torch.tensor(rules, dtype=dtype, device=device)
