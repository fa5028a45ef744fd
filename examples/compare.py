"""Compares host flows with and without flowplug's transforms on real data, at equal training time.

For each host four models are trained: its stock coupling or autoregressive flow, the same flow behind splines of the
features that start from data, or with residual transforms mixed in, and a pure residual flow. The parameters with the
best validation log-likelihood are tested. Prints a table and writes it, with a picture of 2-D marginals, to the output
folder.

    python examples/compare.py                                  # UCI Breast Cancer Wisconsin, shipped with scikit-learn
    python examples/compare.py --data FILE.npz --seconds 60     # arrays train, val and test of shape (rows, features)
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import zuko
from torch import Tensor

import flowplug as fp
import flowplug_nflows
import flowplug_normflows
import flowplug_zuko
from common import tables, training
from common.command import OptionError, among, parse, positive, refusing, usable
from common.densities import Density, nflows_density, normflows_density, zuko_density
from common.layers import affine_coupling, autoregression, spline_coupling
from common.provenance import provenance
from common.report import write_text
from common.tables import Table
from common.trial import SAMPLES, table, trial
from uci.models import Host, arranged

HIDDEN = 128  # width of all networks but those of the splines


@dataclass(frozen=True)
class Comparison:
    """A host's stock flow by its name, and the patterns of it and of its mixture, as `uci.models.arranged` has them."""

    name: str
    host: Host
    stock: str
    mixed: str

    def models(self, features: int) -> dict[str, Callable[[], Density]]:
        """The four flows by name."""
        make = partial(arranged, self.host, features=features, hidden=HIDDEN)
        return {
            self.name: lambda: make(self.stock),
            f"{self.name} + marginal": lambda: make(f"m{self.stock}"),
            f"{self.name} + residual": lambda: make(self.mixed),
            f"{self.name.partition(':')[0]}: pure residual": lambda: self.pure(features),
        }

    def pure(self, features: int) -> Density:
        """Ten residual transforms of flowplug on the host's base."""
        return self.host.density(features, [self.host.wrap(fp.ResidualStack(features, 10, (HIDDEN,)))])


HOSTS = {
    "nflows": Comparison(  # rational-quadratic spline couplings with LU layers between (Durkan et al. 2019)
        "nflows: RQ-NSF coupling",
        Host(
            lambda features, _, i: spline_coupling(features, 64, i, tail_bound=4.0),
            flowplug_nflows.NflowsTransform,
            nflows_density,
        ),
        stock="hhhhhh",
        mixed="rhhrhhrh",
    ),
    "normflows": Comparison(  # affine couplings with LU layers between (Dinh et al. 2017)
        "normflows: Real NVP",
        Host(lambda *sizes: affine_coupling(*sizes)[::-1], flowplug_normflows.NormflowsFlow, normflows_density),
        stock="hhhhhhhh",
        mixed="hhrhhrhhr",
    ),
    "zuko": Comparison(  # masked autoregressions (Papamakarios et al. 2017)
        "zuko: MAF",
        Host(partial(autoregression, zuko.flows.MAF), flowplug_zuko.ZukoTransform, zuko_density),
        stock="hhhhh",
        mixed="rhhrhh",
    ),
}


@dataclass(frozen=True)
class Options:
    """The command line; comments are its help."""

    data: str = tables.EMBEDDED  # .npz file with arrays train, val and test, or breast-cancer
    seconds: float | None = None  # training time of each model; 15 without --steps
    steps: int | None = None  # training steps of each model, instead of --seconds
    device: str = "cpu"  # cpu, cuda, ...
    hosts: tuple[str, ...] = tuple(HOSTS)  # hosts to compare
    out: Path = Path("compare_out")  # folder written to
    lr: float = 5e-3  # largest learning rate
    batch: int = 256  # rows per step
    compile: bool = False  # train under torch.compile, which compiles each model before its time starts
    seed: int = 0  # seed of each model

    def __post_init__(self) -> None:
        among(self, "hosts", HOSTS)
        usable(self)
        positive(self, "seconds", "steps", "lr", "batch")
        if self.seconds is not None and self.steps is not None:
            raise OptionError("--steps is not allowed with --seconds: give one of them")

    @property
    def training(self) -> training.Options:
        """Those of the training loop."""
        seconds = (self.seconds or 15.0) if self.steps is None else None
        return training.Options(
            steps=self.steps,
            seconds=seconds,
            lr=self.lr,
            warmup=100,
            clip=100.0,
            batch=self.batch,
            compile=self.compile,
        )

    @property
    def budget(self) -> str:
        """How long each model is trained, in words."""
        length = f"{self.steps} steps" if self.steps else f"{self.training.seconds:g} s"
        return f"{length}, beside the time of compiling," if self.compile else length


def draw(data: Table, samples: dict[str, Tensor], path: Path) -> None:
    """Draws the first two features of the training rows and of each model's samples."""
    panels = {"data": data.train.cpu(), **samples}
    columns = min(len(panels), 5)
    rows = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 3.2 * rows), squeeze=False)
    low, high = data.test[:, :2].quantile(torch.tensor([0.005, 0.995], device=data.test.device), dim=0).cpu()
    margin = 0.1 * (high - low)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (name, points) in zip(axes.flat, panels.items(), strict=False):
        axis.scatter(points[:SAMPLES, 0], points[:SAMPLES, 1], s=4, alpha=0.4, color="k" if name == "data" else "C0")
        axis.set_xlim(float(low[0] - margin[0]), float(high[0] + margin[0]))
        axis.set_ylim(float(low[1] - margin[1]), float(high[1] + margin[1]))
        axis.set_title(name, fontsize=8)
        axis.set(xticks=[], yticks=[])
    figure.suptitle(f"{data.name}: features 1 and 2")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, tests and reports every model."""
    options = parse(Options, arguments, description=__doc__)
    with refusing():
        data = tables.load(options.data, options.device)
        options.out.mkdir(parents=True, exist_ok=True)
    title = f"{data.name}: {len(data.train)} training rows; {options.budget} a model on {options.device}"
    print(title)
    lines, samples, versions = [], {}, provenance(options.device, "examples/compare.py")
    for host in options.hosts:
        for name, make in HOSTS[host].models(data.features).items():
            torch.manual_seed(options.seed)
            line, samples[name] = trial(name, make().to(options.device), data, options.training)
            lines.append(line | {"versions": versions})
    report = table(lines)
    print(f"\n{report}")
    write_text(options.out / "results.md", f"{title}\n\n{report}\n")
    write_text(options.out / "results.json", json.dumps(lines, indent=1, allow_nan=False))
    draw(data, samples, options.out / "marginals.png")
    print(f"\nwritten to {options.out}: results.md, results.json, marginals.png")


if __name__ == "__main__":
    main()
