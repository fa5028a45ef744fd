"""The power series of the log-det, with Hutchinson's trace estimator."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from flowplug._errors import InfiniteVarianceWarning
from flowplug.lipschitz._bound import LipschitzBound
from flowplug.logdet._control import Control
from flowplug.logdet._gradients import Gradient, Neumann, dot
from flowplug.logdet._probes import Probes, Rademacher
from flowplug.logdet._series import Recurrence, SeriesLogDet
from flowplug.logdet._terms import Certified, Roulette, Terms


@dataclass(frozen=True)
class PowerSeries(SeriesLogDet):
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

    def check(self, bound: LipschitzBound) -> None:
        """Term k has a second moment of the order rho^2k / P(N >= k): its sum is finite if P falls slower than L^2k.

        Warns:
            InfiniteVarianceWarning: It may fall faster.
        """
        limit, decay = float(bound) ** 2, self.terms.decay(float(bound))
        if 0 < limit >= decay:
            warnings.warn(
                f"{self.terms} ends a power series too early for a Lipschitz bound of {float(bound):.3g}: from term to "
                f"term a share of {decay:.3g} goes on, and the variance is infinite once the squared spectral radius "
                f"of a Jacobian reaches that; it may be up to {limit:.3g} here. Use Krylov, whose variance is always "
                "finite, or Roulette(Certified())",
                InfiniteVarianceWarning,
                stacklevel=3,
            )

    def start(self, v: Tensor) -> Recurrence:
        """The series at :math:`v^T J v`."""
        return _Powers(v)


class _Powers(Recurrence):
    r"""The directions :math:`(-J^T)^{k-1} v`: u is their sum, and term k of the value one k-th of that of u^T J v."""

    STATE = ("_v",)

    def __init__(self, v: Tensor) -> None:
        self._v, self._k, self.direction, self.u = v, 1, v, v
        self.known, self.waiting = v.new_zeros(len(v), 2), v.new_ones(len(v), 2)

    @property
    def residual(self) -> Tensor:
        """The size of the direction, relative to v."""
        return (dot(self.direction, self.direction) / dot(self._v, self._v)).sqrt()

    def advance(self, product: Tensor) -> Tensor:
        """To the next power."""
        settled = dot(product, self._v).unsqueeze(1) * self.waiting
        self.direction = self.u = -product
        self._k += 1
        share = product.new_full((len(product), 1), 1 / self._k)
        self.waiting = torch.cat([share, torch.ones_like(share)], dim=1)
        return settled
