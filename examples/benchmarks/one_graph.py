"""Measures what flows cost beside their mathematics: graphs, operators and recompilations, steps, passes and samples.

Ratios are of CPU times of one thread; both sides are called in turn, round by round, in one process. A compiled one
starts from data and is compiled before its time starts. Operators are those that torch's profiler counts, calls by
other operators included.

    python examples/benchmarks/one_graph.py
    python examples/benchmarks/one_graph.py --only graphs operators
    python examples/benchmarks/one_graph.py --only splines --features 6 --rounds 51
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.costs import counts, evaluation, steps
from benchmarks.costs.flows import BACKENDS, Sizes
from benchmarks.measurements import Measurement, run
from common.command import OptionError, among

MEASURES: dict[str, Callable[[Sizes], Iterator[Measurement]]] = {
    "graphs": counts.graphs,
    "operators": counts.operators,
    "compiled": steps.compiled,
    "splines": steps.splines,
    "recompilations": counts.recompilations,
    "normflows": steps.normflows,
    "evaluation": evaluation.log_likelihoods,
    "memory": evaluation.memory,
    "samples": evaluation.samples,
    "norms": evaluation.norms,
}


@dataclass(frozen=True)
class Settings(Sizes):
    """What to measure."""

    only: tuple[str, ...] = tuple(MEASURES)

    def __post_init__(self) -> None:
        super().__post_init__()
        among(self, "only", MEASURES)
        if self.flows:
            among(self, "flows", counts.NAMES)
        if self.backend not in BACKENDS:
            raise OptionError(f"--backend must be of {', '.join(BACKENDS)}; got {self.backend}")


def measure(settings: Settings) -> Iterator[Measurement]:
    """Each in turn."""
    for name in settings.only:
        yield from MEASURES[name](settings)


if __name__ == "__main__":
    run(measure, Settings, __doc__)
