"""Posterior estimation in sbi: its own estimators, the same with flowplug's transforms in front, and pure ones.

Trains every model on simulations of every task from every seed, at about equal parameters, for as many seconds or
steps. An estimator is built as sbi's NPE(density_estimator=...) has it built, and its own loss is minimised in the loop
of examples/uci.py, as NPE.train takes no budget of time: AdamW with warm-up, a cosine schedule and clipped gradients,
Polyak averages, of which the best on a tenth of the simulations, held out, is tested.

Models of one seed see the same simulations, and all are judged by the same 10,000 fresh pairs: the mean of
log q(theta | x). Where the exact posterior is known, a classifier tells draws from it and from q apart for
--observations of these pairs: C2ST, the part that it gets right, 0.5 at best.

Writes to the output folder results.jsonl (a line a run), table.md, summary.md (means over seeds, and what
flowplug's transforms gain over sbi's own estimator on the same pairs), gains.png, a picture of those gains, rows.jsonl,
the means over pairs that the summary is of, and log q of each pair of each run.

    python examples/posteriors.py --tasks two-moons --simulations 10000 --seeds 0 1 2 --seconds 60 --cpu
    python examples/posteriors.py --tasks two-moons slcp --models zuko-nsf zuko-nsf+residual+dense --steps 5000
    python examples/posteriors.py --simulations 50 --steps 5      # to see whether it runs
    python examples/posteriors.py ... --resume                    # goes on where a killed run was last saved

Needs sbi: pip install 'flowplug[sbi]'.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from common.command import OptionError, among, at_least, not_negative, parse
from common.grid import Grid
from common.options import RunOptions
from common.runs import Config, Line
from posteriors.models import DEFAULTS, MODELS
from posteriors.report import STUDY, judged
from posteriors.tasks import TASKS, Problem, load
from posteriors.training import Training

FEWEST = 20


@dataclass(frozen=True)
class Options(RunOptions):
    """The command line; comments are its help."""

    SECONDS = 60.0

    tasks: tuple[str, ...] = ("two-moons", "gaussian-mixture", "linear-gaussian")  # simulators
    simulations: tuple[int, ...] = (10_000,)  # of each, a tenth of them held out
    models: tuple[str, ...] = DEFAULTS  # estimators to train
    observations: int = 5  # for which draws are told from the exact posterior; 0 for none
    draws: int = 500  # from each posterior
    parameters: int = 50_000  # of each model, about: as many as sbi's own have by default
    batch: int = 200  # simulations per step, of all processes
    out: Path = Path("posteriors_out")  # folder written to

    def __post_init__(self) -> None:
        among(self, "tasks", TASKS)
        among(self, "models", MODELS)
        if not self.simulations or min(self.simulations) < FEWEST:
            got = " ".join(map(str, self.simulations)) or "none"
            raise OptionError(f"--simulations must be at least {FEWEST}; got {got}")
        not_negative(self, "observations")
        at_least(self, FEWEST, "draws")
        super().__post_init__()

    @property
    def sources(self) -> dict[str, tuple[str, int]]:
        """Task and simulations, by the name they have in results."""
        return {f"{task}-{number}": (task, number) for task in self.tasks for number in self.simulations}

    def configs(self, source: str, processes: int) -> list[Config]:
        """The runs on so many simulations of a task."""
        shared = {"observations": self.observations, "draws": self.draws, **self.shared(processes)}
        runs = [(model, seed) for seed in self.seeds for model in self.models]
        return [{"data": source, "model": model, "seed": seed, **shared} for model, seed in runs]

    def load(self, source: str, device: torch.device) -> Problem:
        """The task and what it is judged by."""
        return load(*self.sources[source], self.observations, self.draws, device)


def measured(run: Training) -> Line:
    """What a run is judged by."""
    values = run.tested(run.problem.theta, run.problem.x)
    return run.spent | judged(run.averaged, run.problem, values)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the grid."""
    options = parse(Options, arguments, description=__doc__)
    Grid[Problem, Training](
        options,
        list(options.sources),
        configs=lambda source, processes: options.configs(source, processes.world),
        load=options.load,
        kind=Training,
        measured=measured,
        report=STUDY.report,
        facts=lambda _: {"sbi": version("sbi")},
        scripts=("examples/posteriors",),
    ).execute()


if __name__ == "__main__":
    main()
