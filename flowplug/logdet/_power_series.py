"""The power series of the log-det, with Hutchinson's trace estimator."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowplug._errors import InfiniteVarianceWarning
from flowplug.branch import Linearization, LipschitzBound
from flowplug.logdet._control import Control
from flowplug.logdet._lengths import Certified
from flowplug.logdet._neumann import Neumann
from flowplug.logdet._probes import Probes, Rademacher
from flowplug.logdet._recurrence import Draw, Recurrence, Solved
from flowplug.logdet._series import Gradient, Problem, Series, dot
from flowplug.logdet._terms import Roulette, Terms

_NEGLIGIBLE = 1e-25


@dataclass(frozen=True)
class PowerSeries(Series):
    r"""The stochastic log-det of Residual Flows, from vector-Jacobian products alone.

    .. math:: \log\det(I + J) = \sum_{k=1}^{\infty} \frac{(-1)^{k+1}}{k} \operatorname{tr} J^k
              \approx \sum_{k=1}^{n} \frac{(-1)^{k+1} c_k}{k} v^T J^k v

    With `Roulette` terms the value *and* its gradient are unbiased, in train and eval mode, for any per-sample weights
    of the loss. The cost is one evaluation of g and n products, whatever the dimension. See `Geometric` for when the
    variance is finite, and `Krylov` for a series in which it always is.

    Reference: Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling", NeurIPS 2019,
    eqs. (6) and (8).

    Args:
        terms: `Truncated` (biased), `Roulette` or `Converged`.
        probes: `Rademacher`, `Gaussian` or `Orthogonal`.
        gradient: `Neumann` (Theorem 2), `Autograd`, or `Recompute`.
        control: `ExactTrace`, or ``None`` as in the paper.

    Warns:
        InfiniteVarianceWarning: At construction of a residual transform whose bound allows Jacobians for which the
            roulette has infinite variance.

    Example:
        >>> logdet = PowerSeries(terms=Roulette(Certified(), exact=4), probes=Rademacher(samples=2))
        >>> transform = ResidualTransform(LipschitzMLP(100), logdet=logdet)
    """

    terms: Terms = Roulette(Certified(), exact=2)  # noqa: RUF009 -- frozen
    probes: Probes = Rademacher()  # noqa: RUF009
    gradient: Gradient = Neumann()  # noqa: RUF009
    control: Control | None = None

    def check(self, lipschitz: LipschitzBound) -> None:
        """Term k has a second moment of the order rho^2k / P(N >= k): its sum is finite if P falls slower than L^2k.

        Warns:
            InfiniteVarianceWarning: It may fall faster.
        """
        limit, decay = float(lipschitz) ** 2, self.terms.decay(float(lipschitz))
        if 0 < limit >= decay:
            warnings.warn(
                f"{self.terms} ends a power series too early for a Lipschitz bound of {float(lipschitz):.3g}: from "
                f"term to term a share of {decay:.3g} goes on, and the variance is infinite once the squared spectral "
                f"radius of a Jacobian reaches that; it may be up to {limit:.3g} here. Use Krylov, whose variance is "
                "always finite, or Roulette(Certified())",
                InfiniteVarianceWarning,
                stacklevel=3,
            )

    def start(self, v: Tensor) -> Recurrence:
        """The series at :math:`v^T J v`."""
        return _Powers(v)


def _without_subnormals(power: Tensor) -> Tensor:
    """Powers of a contraction fade, and CPUs take up to a hundred times as long for numbers below the normal range.

    What is left out cannot be seen beside the probe, whose entries are of size 1.
    """
    return power.masked_fill(power.abs() < _NEGLIGIBLE, 0.0)


class _Powers(Recurrence):
    r"""The vectors :math:`(-J^T)^{k-1} v`: u is their sum, and term k of the value one k-th of that of u^T J v."""

    STATE = ("_v",)

    def __init__(self, v: Tensor) -> None:
        self._v, self._k, self.vector, self.u = v, 1, v, v
        self.known, self.waiting = v.new_zeros(len(v), 2), v.new_ones(len(v), 2)

    @property
    def residual(self) -> Tensor:
        """The size of the power, relative to v."""
        return (dot(self.vector, self.vector) / dot(self._v, self._v)).sqrt()

    def advance(self, product: Tensor) -> Tensor:
        """To the next power."""
        settled = dot(product, self._v).unsqueeze(1) * self.waiting
        self.vector = self.u = _without_subnormals(-product)
        self._k += 1
        share = product.new_full((len(product), 1), 1 / self._k)
        self.waiting = torch.cat([share, torch.ones_like(share)], dim=1)
        return settled


@dataclass(frozen=True)
class Autograd(Gradient):
    r"""Differentiates a power series term by term; memory grows with the number of terms.

    .. math:: \sum_{k=1}^{n} \frac{(-1)^{k+1} c_k}{k} v^T J^k v

    Right to every order: a derivative may be differentiated again, as in score matching.

    Raises:
        TypeError: At construction of another series than `PowerSeries`: a projection is no sum of such terms.

    Example:
        >>> logdet = PowerSeries(gradient=Autograd())
    """

    whole: ClassVar[bool] = True

    def check(self, series: Series) -> None:
        """Refuses all but power series."""
        if not isinstance(series, PowerSeries):
            raise TypeError(
                f"{type(series).__name__}(gradient=...) must not be Autograd(), nor a Recompute of it, which "
                "differentiates the terms of a power series: use Neumann() or Recompute(Neumann()), or PowerSeries"
            )

    def solve(self, problem: Problem) -> list[Solved]:
        """Nothing: all of it needs the graph."""
        del problem
        return []

    def attach(self, problem: Problem, solved: Sequence[Solved]) -> Tensor:
        """The series and, through autograd, its gradient."""
        del solved
        series, linear, trace, draws = problem
        # Where no term is drawn, a zero that keeps its graph lets a loss of log-dets alone be differentiated.
        total = 0 * linear.y.flatten(1).sum(1) if trace is None else trace * len(draws)
        for draw in draws:
            total = _add_terms(total, series.terms.rtol, linear, draw, first=trace is None)
        return total / len(draws)


def _add_terms(total: Tensor, rtol: float, linear: Linearization, draw: Draw, *, first: bool) -> Tensor:
    """Adds the terms of one probe to the ``total: (B,)``, the first one or without it."""
    rows = draw.permutation
    linear, v = linear.select(rows), draw.v[rows]
    product, running = v, torch.ones(len(v), dtype=torch.bool, device=v.device)
    for k, (weight, count) in enumerate(draw.schedule, 1):
        if count < len(v):
            # From the last selection, whose evaluation of g serves this one as well.
            linear = linear.select(slice(count))
            rows, v, product, running = rows[:count], v[:count], product[:count], running[:count]
        product = _without_subnormals(linear.vjp(product, create_graph=torch.is_grad_enabled()))
        if k > 1 or first:
            term = dot(product, v) * running * ((-1) ** (k + 1) * weight / k)
            total = total.index_add(0, rows, term)
        if rtol:
            running = running & (dot(product, product) > dot(v, v) * rtol**2).detach()
            if not running.any():
                break
    return total
