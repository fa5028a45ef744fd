"""How many terms of a series are summed, and how each is weighted."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator


class Terms(Protocol):
    """Decides the length of a series."""

    def draw(self, generator: Generator | None) -> list[float]:
        """The weights ``c_1 ... c_n`` of the terms to sum; a CPU generator, so that no GPU has to be waited for."""


class Length(Protocol):
    """A distribution of the number M of random terms, on 0, 1, 2, ..."""

    def draw(self, generator: Generator | None) -> int:
        """One M."""

    def survival(self, m: int) -> float:
        """P(M >= m)."""


@dataclass(frozen=True)
class Truncated:
    r"""The first ``n`` terms: deterministic length, biased.

    The bias of the log-det is at most :math:`-D (\log(1 - L) + \sum_{k \le n} L^k / k)` for a bound :math:`L` on the
    spectral radius.

    Reference: Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen, "Invertible Residual Networks", ICML 2019, section 3.2.

    Args:
        n: Number of terms, at least 1.

    Raises:
        ValueError: ``n`` is below 1.

    Example:
        >>> Truncated(3).draw(None)
        [1.0, 1.0, 1.0]
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"Truncated(n) must be at least 1; got {self.n}")

    def draw(self, generator: Generator | None) -> list[float]:
        """Weights 1 for all ``n`` terms."""
        del generator
        return [1.0] * self.n


@dataclass(frozen=True)
class Geometric:
    r"""Random terms with a geometric number, :math:`P(M \ge m) = (1 - p)^m`; ``1 / p - 1`` terms on average.

    The roulette has finite variance if and only if :math:`\rho^2 < 1 - p` for the spectral radius :math:`\rho` of the
    Jacobian: 0.707 for the published p = 0.5. ``p = 1 - L`` with the bound L of g is always safe.

    Args:
        p: Probability of stopping after each term, in (0, 1).

    Raises:
        ValueError: ``p`` is not in (0, 1).

    Example:
        >>> Geometric(0.5).survival(2)
        0.25
    """

    p: float

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise ValueError(f"Geometric(p) must be in (0, 1); got {self.p}")

    def draw(self, generator: Generator | None) -> int:
        """One M."""
        uniform = 1 - torch.rand((), generator=generator, dtype=torch.float64, device="cpu").item()  # in (0, 1]
        return math.floor(math.log(uniform) / math.log(1 - self.p))

    def survival(self, m: int) -> float:
        """P(M >= m)."""
        return (1 - self.p) ** m


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
        if not self.rate > 0:
            raise ValueError(f"Poisson(rate) must be positive; got {self.rate}")

    def draw(self, generator: Generator | None) -> int:
        """One M."""
        rate = torch.tensor(self.rate, dtype=torch.float64, device="cpu")
        return int(torch.poisson(rate, generator=generator).item())

    def survival(self, m: int) -> float:
        """P(M >= m), the regularised lower incomplete gamma function at ``(m, rate)``."""
        if m == 0:
            return 1.0
        order, rate = torch.tensor([float(m), self.rate], dtype=torch.float64, device="cpu")
        return float(torch.special.gammainc(order, rate))


@dataclass(frozen=True)
class Roulette:
    r"""Russian roulette: ``exact`` terms always, then M more, re-weighted so that no bias remains.

    .. math:: \sum_{k=1}^{n} \Delta_k + \sum_{k=n+1}^{n+M} \frac{\Delta_k}{P(M \ge k - n)}

    has the expectation :math:`\sum_{k=1}^\infty \Delta_k`, because term k is present with exactly the probability it is
    divided by. Costs ``exact + E[M]`` products: 3 on average for ``Roulette(Geometric(0.5), exact=2)``.

    Reference: Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling", NeurIPS 2019,
    eq. (6).

    Args:
        length: The distribution of M, `Geometric` or `Poisson`.
        exact: Number of terms always summed, at least 0.

    Raises:
        ValueError: ``exact`` is negative.

    Example:
        >>> logdet = PowerSeries(terms=Roulette(Geometric(0.1), exact=4))
    """

    length: Length
    exact: int = 2

    def __post_init__(self) -> None:
        if self.exact < 0:
            raise ValueError(f"Roulette(exact=...) must be at least 0; got {self.exact}")

    def draw(self, generator: Generator | None) -> list[float]:
        """Weights 1 for the exact terms, then ``1 / P(M >= m)``."""
        drawn = range(1, self.length.draw(generator) + 1)
        return [1.0] * self.exact + [1 / self.length.survival(m) for m in drawn]
