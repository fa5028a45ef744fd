"""How long a roulette goes on: distributions of the number of random terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from flowplug._arguments import require_numbers
from flowplug._errors import LipschitzError
from flowplug.branch import Branch


class Length(Protocol):
    """A distribution of the number M of random terms, on 0, 1, 2, ...

    Example:
        >>> Geometric(0.5).survival(2), Geometric(0.5).decay(0.97)
        (0.25, 0.5)
    """

    def survival(self, m: int, branch: Branch | None = None) -> float:
        """P(M >= m) for a branch; ``None`` where it is the same for every branch."""

    def decay(self, bound: float) -> float:
        """The limit of P(M >= m + 1) / P(M >= m) for a branch with this Lipschitz bound."""


@dataclass(frozen=True)
class Geometric:
    r"""Random terms with a geometric number, of a share of the rows, :math:`P(M \ge m) = s (1 - p)^m` for m > 0.

    The average is ``share * (1 / p - 1)`` terms. The roulette of a power series has finite variance if and only if
    :math:`\rho^2 < 1 - p` for the spectral radius :math:`\rho` of the Jacobian: 0.707 for the published p = 0.5.
    ``p = 1 - L`` with the bound L of g is always safe. A smaller share pays for a smaller p: fewer series, but longer.

    Args:
        p: Probability of stopping after each term, in (0, 1).
        share: Probability s of drawing at all; else M = 0. In (0, 1].

    Raises:
        ValueError: ``p`` is not in (0, 1), or ``share`` not in (0, 1].

    Example:
        >>> Geometric(0.5).survival(2), Geometric(0.5, share=0.4).survival(2)
        (0.25, 0.1)
    """

    p: float
    share: float = 1.0

    def __post_init__(self) -> None:
        require_numbers("Geometric", p=self.p, share=self.share)
        if not 0 < self.p < 1:
            raise ValueError(f"Geometric(p) must be in (0, 1); got {self.p}")
        if not 0 < self.share <= 1:
            raise ValueError(f"Geometric(share=...) must be in (0, 1]; got {self.share}")

    def survival(self, m: int, branch: Branch | None = None) -> float:
        """P(M >= m), the same for every branch."""
        del branch
        return self.share * (1 - self.p) ** m if m > 0 else 1.0

    def decay(self, bound: float) -> float:
        """1 - p."""
        del bound
        return 1 - self.p


@dataclass(frozen=True)
class Certified:
    r"""Geometric with the certified bound L of g for survival, :math:`P(M \ge m) = L^m`; never of infinite variance.

    The second moment of term k is at most of the order :math:`L^{2k} / L^k`, whatever the Jacobian. The bound comes
    from the weights in use, not from the sample, so nothing is biased. Costs :math:`L / (1 - L)` products on average,
    32 for the default bound of 0.97, which is what an unbiased power series of finite variance takes.

    Example:
        >>> logdet = PowerSeries(terms=Roulette(Certified(), exact=2))
    """

    def survival(self, m: int, branch: Branch | None = None) -> float:
        """P(M >= m).

        Raises:
            LipschitzError: There is no branch, or its bound is not below 1.
        """
        if branch is None:
            raise LipschitzError("Certified() takes its survival from the bound of g: pass a branch")
        value = float(branch.lipschitz_bound())
        if not value < 1:
            raise LipschitzError(f"Certified() needs a Lipschitz bound of g below 1; it is {value:.6g}")
        return value**m

    def decay(self, bound: float) -> float:
        """L."""
        return bound


@dataclass(frozen=True)
class Poisson:
    r"""Random terms with a Poisson number of mean ``rate``.

    Its tail is lighter than any :math:`\rho^{2k}`, so the variance of the roulette is **infinite** for every Jacobian
    that is not nilpotent; prefer `Geometric`. Offered because published models use it.

    Args:
        rate: The mean number of random terms, positive.

    Raises:
        ValueError: ``rate`` is not positive.

    Example:
        >>> round(Poisson(2.0).survival(1), 4)  # 1 - exp(-2)
        0.8647
    """

    rate: float

    def __post_init__(self) -> None:
        require_numbers("Poisson", rate=self.rate)
        if not self.rate > 0:
            raise ValueError(f"Poisson(rate) must be positive; got {self.rate}")

    def survival(self, m: int, branch: Branch | None = None) -> float:
        """P(M >= m), the regularised lower incomplete gamma function at ``(m, rate)``; the same for every branch."""
        del branch
        if m == 0:
            return 1.0
        order, rate = torch.tensor([float(m), self.rate], dtype=torch.float64, device="cpu")
        return float(torch.special.gammainc(order, rate))

    def decay(self, bound: float) -> float:
        """0."""
        del bound
        return 0.0
