"""The arguments of normflows' ``Residual`` that choose its log-det, in flowplug's terms."""

from dataclasses import dataclass, fields

import flowplug as fp
from flowplug.hosts import given, require_bools, require_ints, require_numbers


@dataclass(frozen=True)
class Estimator:
    """The log-det of ``normflows.flows.Residual``; its arguments are described in `Residual`.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: ``n_dist`` is neither of the two, ``lamb`` not positive or ``n_exact_terms`` negative.
    """

    reduce_memory: bool = True
    geom_p: float = 0.5
    lamb: float = 2.0
    n_power_series: int | None = None
    exact_trace: bool = False
    brute_force: bool = False
    n_samples: int = 1
    n_exact_terms: int = 2
    n_dist: str = "geometric"

    def __post_init__(self) -> None:
        name, flags = "Residual", {"exact_trace": self.exact_trace, "brute_force": self.brute_force}
        require_bools(name, reduce_memory=self.reduce_memory, **flags)
        require_numbers(name, geom_p=self.geom_p, lamb=self.lamb)
        require_ints(name, n_samples=self.n_samples, n_exact_terms=self.n_exact_terms)
        require_ints(name, **given(n_power_series=self.n_power_series))
        if not (self.lamb > 0 and self.n_exact_terms >= 0):
            raise ValueError(
                f"Residual needs a positive lamb and n_exact_terms of at least 0; got {self.lamb}, {self.n_exact_terms}"
            )
        if self.n_dist not in ("geometric", "poisson"):
            raise ValueError(f"n_dist must be one of ['geometric', 'poisson']; got {self.n_dist!r}")

    def changed(self) -> list[str]:
        """Names of the arguments that differ from their defaults."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]

    def logdet(self) -> fp.LogDet | None:
        """The strategy the arguments name; ``None`` where all have their defaults, which leaves the choice."""
        if self.exact_trace or self.brute_force:
            return fp.ExactLogDet()
        if not self.changed():
            return None
        return fp.PowerSeries(
            terms=self._terms(),
            probes=fp.Rademacher(samples=self.n_samples),
            gradient=fp.Neumann() if self.reduce_memory else fp.Autograd(),
        )

    def _terms(self) -> fp.Terms:
        if self.n_power_series is not None:
            return fp.Truncated(self.n_power_series)
        if self.n_dist == "poisson":
            return fp.Roulette(fp.Poisson(self.lamb), exact=self.n_exact_terms)
        # normflows' geometric number of terms starts at 1, flowplug's at 0.
        return fp.Roulette(fp.Geometric(self.geom_p), exact=self.n_exact_terms + 1)
