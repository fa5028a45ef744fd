"""The UCI density benchmark: host flows, the same with flowplug's transforms for some of their layers, and pure ones.

Trains every model on every table from every seed, at about equal parameters, for as many seconds or steps. AdamW with
warm-up, a cosine schedule and clipped gradients; Polyak averages of the parameters are validated, the best is tested.
With --compile the training step of each, flowplug's or not, is under torch.compile: it starts from data before, and is
compiled before the clock starts, for as many seconds as results.jsonl says. Evaluation and sampling are not, nor is
normflows' own residual flow, which torch.compile refuses. On a GPU, --replay has it record CUDA graphs, too.

Writes to the output folder results.jsonl (a line a run), table.md, summary.md (means over seeds, and what flowplug's
transforms gain over the plain flow on the same rows), gains.png, a picture of those gains, rows.jsonl, the means
over test rows that the summary is of, and the test log-likelihood of each row of each run.

    python examples/uci.py --data POWER --models zuko-nsf zuko-nsf+residual --seconds 600
    python examples/uci.py --data FILE.npz MINIBOONE --archive data.tar.gz --seeds 0 1 2 --steps 20000
    torchrun --nproc-per-node 4 examples/uci.py --device cuda     # the batch is shared among the processes
    python examples/uci.py ... --resume                           # goes on where a killed run was last saved

With --tuned, each model takes learning rate and weight decay from the run that was best for it, on validation rows of
the same table, in other folders:

    python examples/uci.py --lr 1e-3 --out tuning/1e-3 ... ; python examples/uci.py --lr 3e-3 --out tuning/3e-3 ...
    python examples/uci.py --tuned tuning/* --seeds 0 1 2 ...

Each line names the commit of the code that made it; --resume goes on from results of other code only if told so.
The tables of Papamakarios et al. (2017) are downloaded from Zenodo (record 1161203) unless --archive names the file.
GAS is stored as a pickle, which can run code: read it from an archive that you trust.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pooch
import torch

from common.command import OptionError, among, parse
from common.grid import Grid
from common.options import RunOptions
from common.runs import Config, Line
from common.trial import outcome
from uci import models
from uci.data import CHECKSUM, URL, Table, load
from uci.report import COLUMNS, SAMPLES, STUDY
from uci.training import Training
from uci.tuning import tried, tuned


@dataclass(frozen=True)
class Options(RunOptions):
    """The command line; comments are its help."""

    data: tuple[str, ...] = COLUMNS  # .npz files with train, val and test, breast-cancer, photographs, or published
    models: tuple[str, ...] = tuple(models.NAMES)  # flows to train
    compile: bool = False  # train under torch.compile, whatever the model
    replay: bool = False  # --compile by CUDA graphs, mode="reduce-overhead"
    tuned: tuple[Path, ...] = ()  # folders of results of other settings: each model takes what was best there for it
    out: Path = Path("uci_out")  # folder written to
    archive: Path | None = None  # data.tar.gz as published, instead of a download
    folder: Path = Path(pooch.os_cache("flowplug"))  # of the download
    url: str = URL  # of the archive
    checksum: str = CHECKSUM  # of the archive, algorithm:digest, or none

    def __post_init__(self) -> None:
        among(self, "models", models.NAMES)
        if not self.data or len({Path(source).stem for source in self.data}) < len(self.data):
            raise OptionError(f"--data must be tables of different names; got {' '.join(self.data) or 'none'}")
        for folder in self.tuned:
            if not (folder / "results.jsonl").is_file():
                raise OptionError(f"--tuned {folder} holds no results.jsonl: give folders that uci.py wrote")
        super().__post_init__()
        if self.replay and torch.device(self.device).type != "cuda":
            raise OptionError(f"--replay needs a GPU, --device cuda; got --device {self.device}: use --compile")

    def configs(self, source: str, processes: int) -> list[Config]:
        """The runs on one table."""
        shared = self.shared(processes)
        runs = [(model, seed) for model in self.models for seed in self.seeds]
        configs = [{"data": Path(source).stem, "model": model, "seed": seed, **shared} for model, seed in runs]
        for config in configs:
            if (self.compile or self.replay) and config["model"] not in models.EAGER:
                config |= {"compile": True, "replay": True} if self.replay else {"compile": True}
            if self.tuned:
                config |= tuned(tried(self.tuned), config)
        return configs

    def load(self, source: str, device: torch.device) -> Table:
        """The table of this name."""
        checksum = None if self.checksum == "none" else self.checksum
        return load(source, self.archive, self.url, checksum, self.folder, device)


def measured(training: Training) -> Line:
    """What a run is judged by."""
    test = training.data.test
    judged, _ = outcome(training.averaged, training.tested(test), test[:SAMPLES], SAMPLES)
    return training.spent | judged


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the grid."""
    options = parse(Options, arguments, description=__doc__)
    Grid[Table, Training](
        options,
        options.data,
        configs=lambda source, processes: options.configs(source, processes.world),
        load=options.load,
        kind=Training,
        measured=measured,
        report=STUDY.report,
        facts=lambda data: {"published": data.published},
    ).execute()


if __name__ == "__main__":
    main()
