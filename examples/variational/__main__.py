"""Reverse KL on targets of known normaliser: flows of a host, the same with flowplug's transforms, and a pure one.

Trains every model on every target from every seed, at about equal parameters, for as many seconds or steps, in the loop
of examples/uci.py: AdamW with warm-up, a cosine schedule and clipped gradients, Polyak averages, of which that of the
best evidence bound on fixed latent points is judged. Every layer stands so that drawing is its cheap direction.

Targets are Neal's funnel, concentric rings, a mixture of Gaussians, and the hybrid Rosenbrock density of Pagani et al.
(2022). All are given without their normaliser Z, which is known, and can be drawn from exactly. A flow is judged by

- its weights: the effective share of draws, effective draws per CPU second of drawing them with their weights, and the
  error of the estimate of log Z;
- independence Metropolis with it as proposal: acceptance, and effective samples per CPU second by autocorrelation, of
  the worst of the features, the square of the norm and the log-weight;
- exact draws: forward KL, and the effective share as these have it. A flow that has lost a part of the target has fine
  weights; a wrong log Z and these tell.

Writes to the output folder results.jsonl (a line a run), table.md, summary.md (means over seeds, and effective draws
per second as multiples of the plain flow's), and gains.png, a picture of these.

    python examples/variational.py --seeds 0 1 2 --seconds 15 --cpu --checks 10
    python examples/variational.py --targets rings --models realnvp realnvp+residual --steps 2000
    python examples/variational.py --draws 200 --exact 100 --steps 5    # to see whether it runs
    python examples/variational.py ... --resume                         # goes on where a killed run was last saved
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from common.command import OptionError, among, at_least, parse
from common.grid import Grid
from common.options import RunOptions
from common.runs import Config, Line
from variational.measures import CHAINS, SEED, measured
from variational.models import MODELS
from variational.report import STUDY
from variational.targets import TARGETS, Target
from variational.training import Training


@dataclass(frozen=True)
class Options(RunOptions):
    """The command line; comments are its help."""

    SECONDS = 15.0

    targets: tuple[str, ...] = tuple(TARGETS)  # to draw from
    models: tuple[str, ...] = tuple(MODELS)  # flows to train
    draws: int = 20_000  # of a flow, thrice, which are weighted, and proposed to 100 chains
    exact: int = 4_000  # draws of the target
    parameters: int = 20_000  # of each model, about
    batch: int = 256  # draws per step, of all processes
    patience: int = 100  # validations without progress that end a run
    out: Path = Path("variational_out")  # folder written to

    def __post_init__(self) -> None:
        among(self, "targets", TARGETS)
        among(self, "models", MODELS)
        at_least(self, 2 * CHAINS, "draws")
        if self.draws % CHAINS:
            raise OptionError(f"--draws must be a multiple of the {CHAINS} chains; got {self.draws}")
        at_least(self, 2, "exact")
        super().__post_init__()

    def configs(self, target: str, processes: int) -> list[Config]:
        """The runs on a target."""
        shared = {"draws": self.draws, "exact": self.exact, **self.shared(processes)}
        runs = [(model, seed) for seed in self.seeds for model in self.models]
        return [{"data": target, "model": model, "seed": seed, **shared} for model, seed in runs]


def judged(run: Training) -> Line:
    """What a run is judged by."""
    run.restore()
    config = run.config
    return run.spent | measured(run.averaged, run.target, config["draws"], config["exact"], SEED + config["seed"])


def load(name: str, _: torch.device) -> Target:
    """The target of this name."""
    return TARGETS[name]()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the grid."""
    options = parse(Options, arguments, description=__doc__)
    Grid[Target, Training](
        options,
        options.targets,
        configs=lambda target, processes: options.configs(target, processes.world),
        load=load,
        kind=Training,
        measured=judged,
        report=STUDY.report,
        scripts=("examples/variational",),
    ).execute()


if __name__ == "__main__":
    main()
