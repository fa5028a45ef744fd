"""The UCI density benchmark: host flows, the same with flowplug's transforms for some of their layers, and pure ones.

Trains every model on every table from every seed, at about equal parameters, for as many seconds or steps. AdamW with
warm-up, a cosine schedule and clipped gradients; Polyak averages of the parameters are validated, the best is tested.
With --compile the training step of each, flowplug's or not, is under torch.compile: it starts from data before, and is
compiled before the clock starts, for as many seconds as results.jsonl says. Evaluation and sampling are not, nor is
normflows' own residual flow, which torch.compile refuses.

Writes to the output folder results.jsonl (a line a run), table.md, curves.png, summary.md (means over seeds, and what
flowplug's transforms gain over the plain flow on the same rows), and the test log-likelihood of each row of each run.

    python examples/uci.py --data POWER --models zuko-nsf zuko-nsf+residual --seconds 600
    python examples/uci.py --data FILE.npz MINIBOONE --archive data.tar.gz --seeds 0 1 2 --steps 20000
    torchrun --nproc-per-node 4 examples/uci.py --device cuda     # the batch is shared among the processes
    python examples/uci.py ... --resume                           # goes on where a killed run was last saved

Each line names the commit of the code that made it; --resume goes on from results of other code only if told so.
The tables of Papamakarios et al. (2017) are downloaded from Zenodo (record 1161203) unless --archive names the file.
GAS is stored as a pickle, which can run code: read it from an archive that you trust.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pooch
import torch

from common import memory
from common.command import OptionError, among, parse, positive, refuse, refusing, usable
from common.provenance import provenance
from common.report import finite, read_lines, replacing
from common.training import watched
from common.trial import outcome
from uci import models
from uci.data import CHECKSUM, URL, Table, load
from uci.processes import Processes
from uci.report import COLUMNS, SAMPLES, report, summary, table
from uci.runs import Config, Line, check, code_of, run_path
from uci.training import Training

SHARED = ("parameters", "batch", "lr", "weight_decay", "warmup", "clip", "decay", "checks", "patience", "amp", "device")
SECONDS = 600.0


@dataclass(frozen=True)
class Options:
    """The command line; comments are its help."""

    data: tuple[str, ...] = COLUMNS  # .npz files with train, val and test, breast-cancer, or of the published tables
    models: tuple[str, ...] = tuple(models.NAMES)  # flows to train
    seeds: tuple[int, ...] = (0,)  # a run of each model from each
    seconds: float | None = None  # wall time of each run; 600 without --steps
    cpu: bool = False  # --seconds of CPU time, which other work on the machine does not spend
    steps: int | None = None  # length of each run in steps, instead of --seconds
    parameters: int = 100_000  # of each model, about
    batch: int = 512  # rows per step, of all processes
    lr: float = 2e-3  # largest learning rate
    weight_decay: float = 0.0  # of AdamW
    warmup: int = 100  # steps until the largest learning rate
    clip: float = 100.0  # largest norm of the gradient
    decay: float = 0.999  # of the Polyak average; 0 for none
    checks: int = 40  # validations in a run
    patience: int = 20  # validations without progress that end a run
    amp: bool = False  # train in mixed precision, bfloat16
    compile: bool = False  # train under torch.compile, whatever the model
    device: str = "cpu"  # cpu, cuda, ...
    out: Path = Path("uci_out")  # folder written to
    checkpoint: float = 300.0  # seconds of training between checkpoints
    resume: bool = False  # skip the runs in --out, and go on where a killed one was last saved
    across_commits: bool = False  # with --resume, also accept runs that other code made
    archive: Path | None = None  # data.tar.gz as published, instead of a download
    folder: Path = Path(pooch.os_cache("flowplug"))  # of the download
    url: str = URL  # of the archive
    checksum: str = CHECKSUM  # of the archive, algorithm:digest, or none

    def __post_init__(self) -> None:
        among(self, "models", models.NAMES)
        usable(self)
        positive(self, "seconds", "steps", "parameters", "batch", "lr", "warmup", "clip", "checks", "patience")
        if not self.data or len({Path(source).stem for source in self.data}) < len(self.data):
            raise OptionError(f"--data must be tables of different names; got {' '.join(self.data) or 'none'}")
        if self.seconds is not None and self.steps is not None:
            raise OptionError("--steps is not allowed with --seconds: give one of them")
        if not 0 <= self.decay < 1:
            raise OptionError(f"--decay must be in [0, 1); got {self.decay}")
        if self.weight_decay < 0:
            raise OptionError(f"--weight-decay must not be negative; got {self.weight_decay}")
        begun = [path for form in ("results.jsonl", "*.checkpoint.pt") for path in self.out.glob(form)]
        if begun and not self.resume:
            raise OptionError(f"{self.out} holds results or checkpoints: pass --resume to go on, or another --out")

    def configs(self, source: str, processes: int) -> list[Config]:
        """The runs on one table."""
        # Before --steps had no value of its own, it was 0: so it is in the results of then.
        budget = {"seconds": self.seconds or SECONDS, "steps": self.steps or 0}
        shared = budget | {key: getattr(self, key) for key in SHARED} | {"processes": processes}
        runs = [(model, seed) for model in self.models for seed in self.seeds]
        configs = [{"data": Path(source).stem, "model": model, "seed": seed, **shared} for model, seed in runs]
        for config in configs:
            if self.cpu:
                config["cpu"] = True  # else there is none, as in results of before
            if self.compile and config["model"] not in models.EAGER:
                config["compile"] = True
        return configs

    def load(self, source: str, device: torch.device) -> Table:
        """The table of this name."""
        checksum = None if self.checksum == "none" else self.checksum
        return load(source, self.archive, self.url, checksum, self.folder, device)


def run(training: Training, *, resume: bool) -> Line:
    """Trains, with a progress bar, and measures; the outcome is what a line of results.jsonl says of it."""
    processes = training.processes
    memory.reset(processes.device)
    if resume:
        training.resume()
    try:
        for _ in watched(training, training.name, hidden=True if processes.rank else None):
            pass
        return measured(training)
    except FloatingPointError as error:
        return {"failed": str(error)}


def measured(training: Training) -> Line:
    """What a run is judged by."""
    density, test, processes = training.averaged, training.data.test, training.processes
    training.restore()
    values = processes.log_likelihoods(density, test)
    if processes.rank == 0:
        with replacing(training.values) as file:
            torch.save({"config": training.config, "values": values}, file)
    judged, _ = outcome(density, values, test[:SAMPLES], SAMPLES)
    spent = {"seconds": training.elapsed}
    if training.options.compile:
        spent |= {"compile_seconds": training.compiling}
    return {
        "validation": finite(training.best),
        "steps": training.step,
        **spent,
        "steps_per_second": training.step / training.elapsed,
        "peak_memory_mib": memory.peak(processes.device),
        **judged,
        "curve": [[finite(round(value, 4)) for value in point] for point in training.curve],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the grid."""
    options = parse(Options, arguments, description=__doc__)
    processes = Processes(options.device)
    if options.batch % processes.world:
        refuse(f"--batch {options.batch} must be a multiple of the {processes.world} processes")
    versions = provenance(processes.device)
    options.out.mkdir(parents=True, exist_ok=True)
    lines = read_lines(options.out / "results.jsonl")
    grid = {source: options.configs(source, processes.world) for source in options.data}
    runs = [config for configs in grid.values() for config in configs]
    with refusing():
        check(lines, runs, options.out, code_of(versions), across=options.across_commits)
    for source, configs in grid.items():
        with refusing():
            data = processes.first_alone(partial(options.load, source, processes.device))
        for config in configs:
            if config not in [line["config"] for line in lines]:
                training = Training(
                    config, data, processes, options.out, code=code_of(versions), every=options.checkpoint
                )
                lines.append(
                    {
                        "config": config,
                        "versions": versions,
                        "published": data.published,
                        **run(training, resume=options.resume),
                    }
                )
                if processes.rank == 0:
                    report(lines, options.out)
            if processes.rank == 0:
                run_path(config, options.out, "checkpoint").unlink(missing_ok=True)
    if processes.rank == 0:
        report(lines, options.out)
        print(f"\n{table(lines)}\n\n{summary(lines, options.out)}\n")
        print(f"written to {options.out}: results.jsonl, table.md, summary.md, curves.png")
    processes.close()


if __name__ == "__main__":
    main()
