"""How many terms of a series are summed, and how each is weighted."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from flowplug._arguments import require_ints, require_numbers, require_part
from flowplug._errors import NotConverged
from flowplug.branch import Branch
from flowplug.logdet._lengths import Geometric, Length


class Terms(Protocol):
    """Decides the length of the series, row by row.

    Attributes:
        rtol: Rows stop once their residual, relative to the probe, is at most this; 0 for never.

    Example:
        >>> branch = Branch.of(LipschitzMLP(2), None)
        >>> Truncated(3).schedule(100, branch, None)
        [(1.0, 100), (1.0, 100), (1.0, 100)]
    """

    @property
    def rtol(self) -> float: ...

    def schedule(self, count: int, branch: Branch, generator: Generator | None) -> Iterable[tuple[float, int]]:
        """For term 1, 2, ...: its weight, and how many of the rows, taken in random order, have it.

        May be iterated over more than once.

        Args:
            count: Number of rows at the start; that of later terms does not grow.
            branch: g, of which only the Lipschitz bound may be asked: what depends on the sample would bias it.
            generator: One of the CPU, so that no GPU has to be waited for; ``None`` for torch's own.
        """

    def schedule_rows(self, uniform: Tensor, branch: Branch) -> Iterable[tuple[float, int]]:
        """The same for eval mode, where the length of a row is a function of its own content.

        Args:
            uniform: A number in [0, 1) for every row, ascending; it is the first rows that stay.
            branch: As in `schedule`.
        """

    def decay(self, bound: float) -> float:
        """The limit of P(N >= k + 1) / P(N >= k) for the number N of terms; 1 if no term is left to chance."""


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
        >>> logdet = PowerSeries(terms=Truncated(10))
    """

    n: int
    rtol: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        require_ints("Truncated", n=self.n)
        if self.n < 1:
            raise ValueError(f"Truncated(n) must be at least 1; got {self.n}")

    def schedule(self, count: int, branch: Branch, generator: Generator | None) -> Iterable[tuple[float, int]]:
        """Weight 1 and all rows, ``n`` times."""
        del branch, generator
        return [(1.0, count)] * self.n

    def schedule_rows(self, uniform: Tensor, branch: Branch) -> Iterable[tuple[float, int]]:
        """As `schedule`: nothing is left to chance."""
        return self.schedule(len(uniform), branch, None)

    def decay(self, bound: float) -> float:
        """1."""
        del bound
        return 1.0


@dataclass(frozen=True)
class Converged:
    r"""Each row until its own residual is small: a bias below a bound, instead of a variance.

    With r the residual of :math:`(I + J)^T u = v` and :math:`|r| \le` ``rtol`` :math:`|v|`, the vector u that carries
    the gradient is off by at most :math:`|r| L / (1 - L)`, for a bound L on :math:`|J|_2`; the value is off by at most
    :math:`|v|` times the largest such error of :math:`(I + tJ)^T u_t = v` over t in [0, 1], about as much. Cheap with
    `Krylov`, whose residuals shrink much faster than :math:`L^k`. Reads one number from the device per term.

    Args:
        rtol: Relative residual at which a row stops, positive.
        max_terms: Terms after which `NotConverged` is raised.

    Raises:
        ValueError: ``rtol`` is not positive or ``max_terms`` is below 1.

    Example:
        >>> logdet = Krylov(terms=Converged(rtol=1e-5))
    """

    rtol: float = 1e-5
    max_terms: int = 1000

    def __post_init__(self) -> None:
        require_numbers("Converged", rtol=self.rtol)
        require_ints("Converged", max_terms=self.max_terms)
        if not self.rtol > 0:
            raise ValueError(f"Converged(rtol=...) must be positive; got {self.rtol}")
        if self.max_terms < 1:
            raise ValueError(f"Converged(max_terms=...) must be at least 1; got {self.max_terms}")

    def schedule(self, count: int, branch: Branch, generator: Generator | None) -> Iterable[tuple[float, int]]:
        """Weight 1 and all rows that have not converged, then an error.

        Raises:
            NotConverged: Some rows are left after ``max_terms`` terms.
        """
        del branch, generator
        return _UntilConverged(self, count)

    def schedule_rows(self, uniform: Tensor, branch: Branch) -> Iterable[tuple[float, int]]:
        """As `schedule`: nothing is left to chance."""
        return self.schedule(len(uniform), branch, None)

    def decay(self, bound: float) -> float:
        """1."""
        del bound
        return 1.0


class _UntilConverged:
    """The terms of `Converged`, and an error behind the last one."""

    def __init__(self, terms: Converged, count: int) -> None:
        self.terms, self.count = terms, count

    def __iter__(self) -> Iterator[tuple[float, int]]:
        yield from itertools.repeat((1.0, self.count), self.terms.max_terms)
        raise NotConverged(
            f"the log-det series did not reach a relative residual of {self.terms.rtol:g} in {self.terms.max_terms} "
            "terms: raise Converged(rtol=...) or max_terms, or check the Lipschitz bound of g"
        )


@dataclass(frozen=True)
class Roulette:
    r"""Russian roulette: ``exact`` terms always, then M more, re-weighted so that no bias remains.

    .. math:: \sum_{k=1}^{n} \Delta_k + \sum_{k=n+1}^{n+M} \frac{\Delta_k}{P(M \ge k - n)}

    has the expectation :math:`\sum_{k=1}^\infty \Delta_k`, because term k is present with exactly the probability it is
    divided by. Costs ``exact + E[M]`` products: 3 on average for ``Roulette(Geometric(0.5), exact=2)``.

    Every row has its own M, and rows are sampled systematically: as long as a group of them is left, their number is
    fixed, and the weight is the inverse of the share that has the term; from there chance decides for the last group as
    a whole, which spares small kernels at the end of the series and costs little variance. One M for the whole batch,
    as in the published code, leaves noise that no batch size averages out (docs/benchmarks.md, "Rows that share a
    length").

    Reference: Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling", NeurIPS 2019,
    eq. (6).

    Args:
        length: The distribution of M: `Geometric`, `Certified` or `Poisson`.
        exact: Number of terms always summed, at least 0.
        group: Number of rows below which the rest share one M, at least 1.

    Raises:
        ValueError: ``exact`` is negative or ``group`` is below 1.

    Example:
        >>> logdet = PowerSeries(terms=Roulette(Geometric(0.1), exact=4))
    """

    length: Length
    exact: int = 2
    group: int = 32
    rtol: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        require_part("Roulette", "length", self.length, "survival", "a length, such as Geometric(0.5)")
        require_ints("Roulette", exact=self.exact, group=self.group)
        if self.exact < 0:
            raise ValueError(f"Roulette(exact=...) must be at least 0; got {self.exact}")
        if self.group < 1:
            raise ValueError(f"Roulette(group=...) must be at least 1; got {self.group}")

    def schedule(self, count: int, branch: Branch, generator: Generator | None) -> Iterable[tuple[float, int]]:
        """Weight 1 and all rows for the exact terms, then about ``count * P(M >= m)`` rows, weighted to match."""
        draw = float(torch.rand((), generator=generator, dtype=torch.float64, device="cpu"))
        return [*[(1.0, count)] * self.exact, *self._tail(count, branch, draw)]

    def schedule_rows(self, uniform: Tensor, branch: Branch) -> Iterable[tuple[float, int]]:
        """Weight 1 and all rows for the exact terms, then those whose number is below P(M >= m), in no groups."""
        return [*[(1.0, len(uniform))] * self.exact, *self._alone(uniform, branch)]

    def _alone(self, uniform: Tensor, branch: Branch) -> Iterator[tuple[float, int]]:
        for m in itertools.count(1):
            survival = self.length.survival(m, branch)
            left = int(torch.searchsorted(uniform, uniform.new_tensor(survival)))
            if not left:
                return
            yield 1 / survival, left

    def _tail(self, count: int, branch: Branch, draw: float) -> Iterator[tuple[float, int]]:
        group = max(1, min(self.group, count))
        for m in itertools.count(1):
            survival = self.length.survival(m, branch)
            left = round(count * survival)
            if left >= group:
                yield count / left, left
            elif draw * group < count * survival:
                yield 1 / survival, group
            else:
                return

    def decay(self, bound: float) -> float:
        """That of M."""
        return self.length.decay(bound)


class Certain(NamedTuple):
    """What every schedule of some terms begins with.

    Attributes:
        schedule: As in `Terms`.
        group: Number of rows for which chance decides whether they go on from there; 0 if all ends there.
    """

    schedule: list[tuple[float, int]]
    group: int


def certain_terms(terms: Terms, count: int) -> Certain | None:
    """What no chance, no branch and no sample decides of a schedule; ``None`` if that is not known."""
    if isinstance(terms, Truncated):
        return Certain([(1.0, count)] * terms.n, 0)
    if isinstance(terms, Roulette) and isinstance(terms.length, Geometric) and count:
        group, schedule = max(1, min(terms.group, count)), [(1.0, count)] * terms.exact
        for m in itertools.count(1):
            left = round(count * terms.length.survival(m))
            if left < group:
                return Certain(schedule, group)
            schedule.append((count / left, left))
    return None
