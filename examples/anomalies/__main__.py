"""Anomalies by flows: trained on normal rows alone, how well does -log p(x) tell others from them?

Trains host flows, the same with flowplug's transforms for some of their layers, and pure ones, as examples/uci.py does
and at about equal parameters, on the normal rows of every table from every seed, for as many seconds or steps. What is
best on other normal rows is scored: by -log p(x) of held-out normal rows and of the anomalies, which nothing before has
seen. Beside them the Mahalanobis distance, and scikit-learn's isolation forest and local outlier factor.

Writes to the output folder results.jsonl (a line a run), table.md, summary.md (means over seeds of AUROC and average
precision, and what flowplug's transforms gain over the plain flow on the same rows), gains.png, a picture of those of
AUROC, and the score of each row of each run, negative.

    python examples/anomalies.py --seeds 0 1 2 --seconds 10 --cpu
    python examples/anomalies.py --data FILE.npz --models zuko-nsf zuko-nsf+residual mahalanobis --steps 2000
    python examples/anomalies.py ... --resume                     # goes on where a killed run was last saved

A FILE.npz has tables train, val and test of normal rows, and anomalies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from anomalies.data import SHIPPED, Labelled, load
from anomalies.report import STUDY, judged
from anomalies.scores import BASELINES
from common.command import OptionError, among, parse
from common.densities import size
from common.grid import Grid
from common.options import RunOptions
from common.report import replacing
from common.runs import Config, Line, run_path
from uci.models import HOSTS, MARGINAL, MIXTURES, NAMES
from uci.training import Training

FLOWS = (*(host + pattern for host in HOSTS for pattern in (*MIXTURES, MARGINAL)), "normflows-residual", "residual")
MODELS = (*NAMES, *BASELINES)


@dataclass(frozen=True)
class Options(RunOptions):
    """The command line; comments are its help."""

    SECONDS = 10.0

    data: tuple[str, ...] = tuple(SHIPPED)  # .npz files with train, val, test and anomalies, breast-cancer or digits
    models: tuple[str, ...] = (*FLOWS, *BASELINES)  # flows to train, and scores without one
    parameters: int = 50_000  # of each flow, about
    batch: int = 32  # rows per step, of all processes
    lr: float = 5e-3  # largest learning rate
    warmup: int = 20  # steps until the largest learning rate
    checks: int = 24  # validations in a run
    patience: int = 5  # validations without progress that end a run: small tables are soon known by heart
    out: Path = Path("anomalies_out")  # folder written to

    def __post_init__(self) -> None:
        among(self, "models", MODELS)
        if not self.data or len({Path(source).stem for source in self.data}) < len(self.data):
            raise OptionError(f"--data must be tables of different names; got {' '.join(self.data) or 'none'}")
        super().__post_init__()

    def configs(self, source: str, processes: int) -> list[Config]:
        """The runs on one table."""
        runs = [(model, seed) for seed in self.seeds for model in self.models]
        shared = self.shared(processes)
        return [{"data": Path(source).stem, "model": model, "seed": seed, **shared} for model, seed in runs]


class NormalTraining(Training):
    """A run on the normal rows of a table."""

    data: Labelled


def measured(run: NormalTraining) -> Line:
    """What a flow is judged by."""
    values = run.tested(torch.cat([run.data.test, run.data.anomalies]))
    if wrong := int(values.isnan().sum()):
        raise FloatingPointError(f"{run.name}: a layer overflows on test rows or anomalies, {wrong} scores are NaN")
    return run.spent | judged(values, len(run.data.test)) | {"parameters": size(run.averaged)}


def untrained(config: Config, data: Labelled, out: Path) -> Line | None:
    """What scores without a flow are judged by; None of a flow."""
    if config["model"] not in BASELINES:
        return None
    rows = torch.cat([data.test, data.anomalies]).cpu()
    values = -BASELINES[config["model"]](data.train.cpu(), rows, config["seed"])
    with replacing(run_path(config, out, "values")) as file:
        torch.save({"config": config, "values": values}, file)
    return judged(values, len(data.test))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the grid."""
    options = parse(Options, arguments, description=__doc__)
    Grid[Labelled, NormalTraining](
        options,
        options.data,
        configs=lambda source, processes: options.configs(source, processes.world),
        load=load,
        kind=NormalTraining,
        measured=measured,
        report=STUDY.report,
        untrained=lambda config, data: untrained(config, data, options.out),
        scripts=("examples/anomalies",),
    ).execute()


if __name__ == "__main__":
    main()
