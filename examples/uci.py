"""The UCI density benchmark: host flows, the same with flowplug's transforms for some of their layers, and pure ones.

Trains every model on every table from every seed, at about equal parameters, for as many seconds or steps. AdamW with
warm-up, a cosine schedule and clipped gradients; Polyak averages of the parameters are validated, the best is tested.
Writes to the output folder results.jsonl (a line a run), table.md, curves.png, summary.md (means over seeds, and what
flowplug's transforms gain over the plain flow on the same rows), and the test log-likelihood of each row of each run.

    python examples/uci.py --data POWER --models zuko-nsf zuko-nsf+residual --seconds 600
    python examples/uci.py --data FILE.npz MINIBOONE --archive data.tar.gz --seeds 0 1 2 --steps 20000
    torchrun --nproc-per-node 4 examples/uci.py --device cuda     # the batch is shared among the processes
    python examples/uci.py ... --resume                           # goes on where a killed run was last saved

The tables of Papamakarios et al. (2017) are downloaded from Zenodo (record 1161203) unless --archive names the file.
GAS is stored as a pickle, which can run code: read it from an archive that you trust.
"""

import argparse
import contextlib
import json
import math
import platform
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pooch
import torch
import uci_data
import uci_models
from dense import size
from torch import distributed
from tqdm import tqdm
from uci_report import COLUMNS, SAMPLES, report, summary, table
from uci_training import Processes, Training, run_path

import flowplug as fp

PACKAGES = ("torch", "nflows", "normflows", "zuko")
BUDGET = ("seconds", "steps", "parameters", "batch")
OPTIONS = (  # what a run depends on
    *BUDGET, "lr", "weight_decay", "warmup", "clip", "decay", "checks", "patience", "amp", "device",
)  # fmt: skip


def finite(value: float) -> float | None:
    """The value, or what JSON has for one that is not finite."""
    return value if math.isfinite(value) else None


def measured(training: Training) -> dict[str, Any]:
    """What a run is judged by."""
    density, data, processes = training.average.module, training.data, training.processes
    if training.best_state is None:
        raise FloatingPointError(f"{training.name}: no validation log-likelihood was finite")
    density.load_state_dict(training.best_state)
    values = processes.log_likelihoods(density, data.test)
    if processes.rank == 0:
        with uci_data.replacing(training.values) as file:
            torch.save({"config": training.config, "values": values}, file)
    sampling_ms, error = math.nan, math.nan
    x = data.test[:SAMPLES]
    failures = (fp.NonFiniteError, fp.NotConverged, AssertionError)  # nflows asserts that its splines have roots
    with torch.no_grad(), fp.no_logdet(), contextlib.suppress(*failures):
        error = float((density.round_trip(x) - x).abs().max())
        start = time.perf_counter()
        density.sample(SAMPLES).cpu()
        sampling_ms = 1000 * (time.perf_counter() - start)
    outcome = {
        "parameters": size(density),
        "validation": training.best,
        "test_log_likelihood": float(values.mean()),
        "two_standard_errors": 2 * float(values.std()) / math.sqrt(len(values)),
        "steps": training.step,
        "seconds": training.elapsed,
        "steps_per_second": training.step / training.elapsed,
        "peak_memory_mib": peak_memory(processes.device),
        "sampling_ms": sampling_ms,
        "round_trip_error": error,
    }
    curve = [[finite(round(value, 4)) for value in point] for point in training.curve]
    return {key: finite(value) for key, value in outcome.items()} | {"curve": curve}


def peak_memory(device: torch.device) -> float:
    """In MiB: of the accelerator in this run, or of the whole process so far on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def train(config: dict[str, Any], data: uci_data.Table, processes: Processes, options: argparse.Namespace) -> Training:
    """One run to its end, with a progress bar."""
    training = Training(config, data, processes, options.out)
    if options.resume:
        training.resume()
    form = "{desc} {percentage:3.0f}%|{bar:20}| {postfix}"
    hidden = True if processes.rank else None  # None: where nobody looks
    with tqdm(total=1.0, desc=f"{training.name:40}", bar_format=form, disable=hidden) as bar:
        for loss in training.run(options.checkpoint):
            bar.n = min(training.done, 1.0)
            text = f"step {training.step}, training {-loss:.3f}, best validation {training.best:.3f} nats"
            bar.set_postfix_str(text, refresh=False)
            bar.update(0)
    return training


def run(
    config: dict[str, Any], data: uci_data.Table, processes: Processes, options: argparse.Namespace
) -> dict[str, Any]:
    """Trains and measures; the outcome is a line of results.jsonl."""
    if processes.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    versions = {"flowplug": fp.__version__, "python": platform.python_version()} | {p: version(p) for p in PACKAGES}
    line = {"config": config, "versions": versions, "published": data.published}
    try:
        return line | measured(train(config, data, processes, options))
    except FloatingPointError as error:
        return line | {"failed": str(error)}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    tables = f".npz files with train, val and test, breast-cancer, or of {', '.join(COLUMNS)} (default these)"
    add("--data", nargs="+", default=list(COLUMNS), metavar="TABLE", help=tables)
    add("--models", nargs="+", choices=uci_models.NAMES, default=uci_models.NAMES, metavar="MODEL",
        help=f"of {', '.join(uci_models.NAMES)} (default all)")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=[0], help="a run of each model from each (default 0)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--seconds", type=float, default=600.0, help="wall time of each run (default %(default)s)")
    budget.add_argument("--steps", type=int, default=0, help="length of each run in steps, instead of --seconds")
    add("--parameters", type=int, default=100_000, help="of each model, about (default %(default)s)")
    add("--batch", type=int, default=512, help="rows per step, of all processes (default %(default)s)")
    add("--lr", type=float, default=2e-3, help="largest learning rate (default %(default)s)")
    add("--weight-decay", type=float, default=0.0, help="of AdamW (default none)")
    add("--warmup", type=int, default=100, help="steps until then (default %(default)s)")
    add("--clip", type=float, default=100.0, help="largest norm of the gradient (default %(default)s)")
    add("--decay", type=float, default=0.999, help="of the Polyak average; 0 for none (default %(default)s)")
    add("--checks", type=int, default=40, help="validations in a run (default %(default)s)")
    add("--patience", type=int, default=20, help="validations without progress that end a run (default %(default)s)")
    add("--amp", action="store_true", help="train in mixed precision, bfloat16")
    add("--device", default="cpu", help="cpu, cuda, ... (default %(default)s)")
    add("--out", type=Path, default=Path("uci_out"), help="folder written to (default %(default)s)")
    add("--checkpoint", type=float, default=300.0, help="seconds between checkpoints (default %(default)s)")
    add("--resume", action="store_true", help="skip the runs in --out, and go on where a killed one was last saved")
    add("--archive", type=Path, help="data.tar.gz as published, instead of a download")
    add("--folder", type=Path, default=pooch.os_cache("flowplug"), help="of the download (default %(default)s)")
    add("--url", default=uci_data.URL, help="of the archive (default %(default)s)")
    add("--checksum", default=uci_data.CHECKSUM, help="algorithm:digest, or none (default %(default)s)")
    options = parser.parse_args(arguments)
    if len({Path(source).stem for source in options.data}) < len(options.data):
        parser.error(f"--data must have different names; got {options.data}")
    for key in ("seconds", "parameters", "batch", "lr", "warmup", "clip", "checks", "patience"):
        if not getattr(options, key) > 0:
            parser.error(f"--{key} must be positive; got {getattr(options, key)}")
    if options.steps < 0 or not 0 <= options.decay < 1:
        parser.error(f"--steps must not be negative, and --decay in [0, 1); got {options.steps} and {options.decay}")
    if options.weight_decay < 0:
        parser.error(f"--weight-decay must not be negative; got {options.weight_decay}")
    begun = [path for form in ("results.jsonl", "*.checkpoint.pt") for path in options.out.glob(form)]
    if begun and not options.resume:
        parser.error(f"{options.out} holds results or checkpoints: pass --resume to go on from them, or another --out")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Runs the grid."""
    options = parse(arguments)
    processes = Processes(options.device)
    if options.batch % processes.world:
        raise ValueError(f"--batch {options.batch} must be a multiple of the {processes.world} processes")
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    shared = {key: getattr(options, key) for key in OPTIONS} | {"processes": processes.world}
    checksum = None if options.checksum == "none" else options.checksum
    for source in options.data:
        data = processes.first_alone(
            lambda source=source: uci_data.load(
                source, options.archive, options.url, checksum, options.folder, processes.device
            )
        )
        for model in options.models:
            for seed in options.seeds:
                config = {"data": data.name, "model": model, "seed": seed, **shared}
                if config not in [line["config"] for line in lines]:
                    lines.append(run(config, data, processes, options))
                    if processes.rank == 0:
                        report(lines, options.out)
                if processes.rank == 0:
                    run_path(config, options.out, "checkpoint").unlink(missing_ok=True)
    if processes.rank == 0:
        report(lines, options.out)
        print(f"\n{table(lines)}\n\n{summary(lines, options.out)}\n")
        print(f"written to {options.out}: results.jsonl, table.md, summary.md, curves.png")
    if processes.world > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
