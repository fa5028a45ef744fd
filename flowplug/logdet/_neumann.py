"""The gradient of a log-det from one vector a probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowplug.logdet._recurrence import Solved
from flowplug.logdet._series import Gradient, Problem, dot


@dataclass(frozen=True)
class Neumann(Gradient):
    r"""The gradient from one vector u a probe, for which alone a graph is kept.

    .. math:: \nabla \log\det(I + J) = E\big[u^T (\nabla J) v\big], \qquad u = (I + J)^{-T} v

    `PowerSeries` sums u as a Neumann series, :math:`u = \sum_{k=0}^{n-1} (-1)^k c_{k+1} (J^T)^k v`; `Krylov` projects.
    The value is the log-det, from the same n products: n - 1 of them are formed one by one, and :math:`u^T J v` holds
    the last. Value and gradient are each unbiased; each sample's gradient scales with its own weight in the loss.

    Reference: Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling", NeurIPS 2019,
    Theorem 2, whose published code returns :math:`u^T J v` itself in place of the log-det.

    Raises:
        SecondDerivativeError: When a derivative of the log-det is differentiated, as in score matching: pass
            `ExactLogDet`, or `PowerSeries` with `Autograd`, which are right to every order.

    Example:
        >>> logdet = PowerSeries(gradient=Neumann())
    """

    @property
    def apart(self) -> Neumann:
        """Itself."""
        return self

    def solve(self, problem: Problem) -> list[Solved]:
        """U and the known part of the value, of every probe."""
        series, linear, trace, draws = problem
        return [series.solve(linear, draw, first=trace is None) for draw in draws]

    def attach(self, problem: Problem, solved: Sequence[Solved]) -> Tensor:
        """The mean of the estimates: their values, with the gradient of ``u^T J v``."""
        linear, trace = problem.linear, problem.trace
        total = torch.zeros_like(solved[0].known) if trace is None else trace * len(solved)
        for v, u, known, share in solved:
            product = dot(linear.vjp(u, create_graph=torch.is_grad_enabled()), v)
            total = total + (known + share * product.detach()) + (product - product.detach())
        return total / len(solved)
