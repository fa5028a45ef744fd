"""The arguments of normflows' ``Residual`` that choose its log-det, in flowplug's terms."""

from dataclasses import dataclass, fields

import flowplug as fp


@dataclass(frozen=True)
class Estimator:
    """The log-det of ``normflows.flows.Residual``; its arguments are described in `Residual`.

    Raises:
        ValueError: ``n_dist`` is neither of the two.
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
