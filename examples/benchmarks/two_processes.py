"""Trains flows by one process and by two that share each batch, and compares curves and wall time.

Each is a run of examples/uci.py from two seeds, with one thread a process, alone or under torchrun. Curves are the
log-likelihoods of validation rows. Where log-dets are estimated, every process draws noise of its own: what that may
change is judged by the difference between two seeds. Wall time is that of training alone.

    python examples/benchmarks/two_processes.py
    python examples/benchmarks/two_processes.py --speed  # on a machine with two idle cores
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.measurements import Figure, Measurement, Recorded, run
from common.command import among, refusing
from common.provenance import ROOT
from common.report import read_lines
from common.runs import Line
from common.tables import load
from uci.models import NAMES

SEEDS = (0, 1)
ALONE = (sys.executable,)
SHARED = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@dataclass(frozen=True)
class Settings(Recorded):
    """What to train, and for how long."""

    data: str = "photographs"
    models: tuple[str, ...] = ("zuko-maf", "zuko-maf+residual+dense", "residual")  # of examples/uci.py
    steps: int = 200
    batch: int = 512  # of all processes together
    parameters: int = 100_000
    checks: int = 5  # validations
    speed: bool = False  # compare wall times too, for which every process needs a core of its own

    def __post_init__(self) -> None:
        super().__post_init__()
        among(self, "models", NAMES)


def trained(settings: Settings, model: str, starter: Sequence[str], out: Path) -> list[Line]:
    """The lines of results of a run, one for each of `SEEDS`."""
    options = {name: getattr(settings, name) for name in ("data", "steps", "batch", "parameters", "checks")}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    script = [str(ROOT / "examples" / "uci.py"), "--models", model, "--seeds", *map(str, SEEDS), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "TQDM_DISABLE": "1"}
    done = subprocess.run([*starter, *script, *words], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"uci.py --models {model} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return read_lines(out / "results.jsonl")


def difference(one: Line, other: Line) -> float:
    """The largest between the validations of two runs of one length, in nats."""
    pairs = zip(one["curve"], other["curve"], strict=True)
    return max(abs(float(a[2]) - float(b[2])) for a, b in pairs)


def seconds(lines: Sequence[Line]) -> float:
    """Of training, in all."""
    return sum(float(line["seconds"]) for line in lines)


def measure(settings: Settings) -> Iterator[Measurement]:
    """Every model."""
    with refusing():  # at once what the runs have no use for
        load(settings.data)
    for model in tqdm(settings.models):
        with tempfile.TemporaryDirectory() as folder:
            one = trained(settings, model, ALONE, Path(folder) / "one")
            two = trained(settings, model, SHARED, Path(folder) / "two")
        setting = {"data": settings.data, "rows": settings.batch, "steps": settings.steps, "flow": model}
        curve = one[0]["curve"]
        figures = {
            "one and two processes": Figure(max(map(difference, one, two)), "nats"),
            "two seeds": Figure(difference(*one), "nats"),
            "first to last": Figure(abs(curve[-1][2] - curve[0][2]), "nats"),
        }
        yield "Curves of two processes", setting, figures
        if settings.speed:
            ratio = Figure(seconds(one) / seconds(two), "ratio of wall times")
            yield "Speed of two processes", setting, {"one / two processes": ratio}


if __name__ == "__main__":
    run(measure, Settings, __doc__)
