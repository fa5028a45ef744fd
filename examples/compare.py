"""Compares flows of each host with and without flowplug's transforms on real data, at equal training time.

Of each host its stock coupling or autoregressive flow is trained, and the same with transforms of flowplug in it; of
normflows its own residual flow too, and what flowplug offers in its place. All have about as many parameters, and as
much CPU time on one thread, which other work on the machine does not spend. The parameters that are best on validation
rows are tested.

Prints a table with the gains over the plain flow on the same test rows, and what they come to. Writes both to the
output folder, with pictures of the gains and of 2-D marginals.

    python examples/compare.py                                  # patches of two photographs, shipped with scikit-learn
    python examples/compare.py --data breast-cancer             # UCI Breast Cancer Wisconsin, likewise
    python examples/compare.py --data FILE.npz --seconds 60     # arrays train, val and test of shape (rows, features)
    python examples/compare.py --resume                         # goes on where Ctrl-C ended it
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import matplotlib.pyplot as plt
import torch
import tyro
from torch import Tensor

import flowplug_normflows
from common import gains as picture
from common import tables
from common.command import among, parse, refusing
from common.densities import Density, nearest, normflows_density, of_normflows
from common.grid import Grid
from common.layers import residual_block
from common.options import RunOptions
from common.paired import Estimate, estimated
from common.report import markdown, replacing, shown, write_lines, write_text
from common.resumable import thinned
from common.runs import Config, Line, log_likelihoods, run_path
from common.tables import Table
from common.trial import SAMPLES, outcome
from uci.models import HOSTS, arranged
from uci.training import START_ROWS, Training

BLOCKS = 4  # of residual flows
PLOTTED = 1000  # points a panel
VALIDATED, TESTED = 1000, 4000  # rows at most, as a test should not take longer than what it tests
Make = Callable[[int, int], Density]  # of features and the width of networks


def stock(name: str, pattern: str = "hhhhhh") -> Make:
    """A flow of a host, with dense transforms in it where the pattern says so."""
    return partial(arranged, HOSTS[name], pattern)


def residual(features: int, hidden: int) -> Density:
    """Residual blocks as the documentation of normflows builds them."""
    widths = [features, hidden, features]
    return normflows_density(features, [layer for _ in range(BLOCKS) for layer in residual_block(widths)])


def recommended(features: int, hidden: int) -> Density:
    """The flow that flowplug recommends, at its defaults."""
    return of_normflows(flowplug_normflows.ResidualFlow(features, BLOCKS, (hidden,)))


class Model(NamedTuple):
    """A flow of a host, and by name the one that it is compared with, if any."""

    host: str
    title: str
    make: Make
    plain: str | None = None


MODELS = {
    "nflows-rqs": Model("nflows", "RQ-NSF coupling", stock("nflows-rqs")),
    "nflows-rqs+dense": Model(
        "nflows", "RQ-NSF, half DenseTransform", stock("nflows-rqs", "dhdhdh"), "nflows-rqs"
    ),
    "normflows-realnvp": Model("normflows", "Real NVP", stock("normflows-realnvp")),
    "normflows-realnvp+dense": Model(
        "normflows", "DenseTransform, Real NVP", stock("normflows-realnvp", "dhhhhhh"), "normflows-realnvp"
    ),
    "normflows-residual": Model("normflows", "Residual", residual),
    "normflows-residual+flow": Model("normflows", "ResidualFlow, of flowplug", recommended, "normflows-residual"),
    "zuko-maf": Model("zuko", "MAF", stock("zuko-maf")),
    "zuko-maf+dense": Model("zuko", "DenseTransform, MAF", stock("zuko-maf", "dhhhhhh"), "zuko-maf"),
}  # fmt: skip
NAMES = tuple(dict.fromkeys(model.host for model in MODELS.values()))


class Comparison(Training):
    """A run of one of `MODELS`."""

    def made(self) -> Density:
        """The flow, started from some of the rows."""
        make, features = MODELS[self.config["model"]].make, self.data.features
        density = nearest(partial(make, features), self.config["parameters"]).to(self.data.train.device)
        density.start(thinned(self.data.train, START_ROWS))
        return density

    @property
    def validated(self) -> tuple[Tensor, ...]:
        """Some of the rows of val."""
        return (thinned(self.data.val, VALIDATED),)


@dataclass(frozen=True)
class Options(RunOptions):
    """The command line; comments are its help."""

    SECONDS: ClassVar[float] = 12.0

    data: str = tables.PHOTOGRAPHS  # .npz file with arrays train, val and test, or photographs, or breast-cancer
    hosts: tuple[str, ...] = NAMES  # hosts to compare
    seconds: float | None = None  # CPU time of each run (on a GPU wall time), where --steps are not given
    cpu: Annotated[bool, tyro.conf.Suppress] = True
    parameters: int = 60_000  # of each model, about
    batch: int = 256  # rows per step, of all processes
    lr: float = 5e-3  # largest learning rate
    checks: int = 10  # validations in a run
    checkpoint: float = 60.0  # seconds of training between checkpoints
    out: Path = Path("compare_out")  # folder written to

    def __post_init__(self) -> None:
        among(self, "hosts", NAMES)
        super().__post_init__()

    def configs(self, source: str, processes: int) -> list[Config]:
        """The runs."""
        shared = self.shared(processes)
        if self.steps or torch.device(self.device).type != "cpu":
            del shared["cpu"]
        names = [name for name, model in MODELS.items() if model.host in self.hosts]
        head = {"data": Path(source).stem}
        return [{**head, "model": name, "seed": seed, **shared} for name in names for seed in self.seeds]


def measured(run: Training, out: Path) -> Line:
    """What a run is judged by; its samples are kept."""
    test = thinned(run.data.test, TESTED)
    judged, samples = outcome(run.averaged, run.tested(test), test[:SAMPLES], SAMPLES)
    if run.processes.rank == 0:
        with replacing(run_path(run.config, out, "samples")) as file:
            torch.save(samples[:PLOTTED, :2].clone(), file)
    return run.spent | judged


def gains(lines: Sequence[Line], out: Path) -> dict[str, Estimate]:
    """What models have more than their plain ones on the same test rows, nats a row, by name; over seeds of both."""
    values: dict[str, dict[int, Tensor]] = {}
    for line in lines:
        found = log_likelihoods(line["config"], out)
        if "failed" not in line and found is not None:
            values.setdefault(line["config"]["model"], {})[line["config"]["seed"]] = found
    result = {}
    for name, model in MODELS.items():
        own, plain = values.get(name, {}), values.get(model.plain or "", {})
        if pairs := [own[seed] - plain[seed] for seed in own if seed in plain]:
            result[name] = estimated(pairs)
    return result


def table(lines: Sequence[Line], found: Mapping[str, Estimate]) -> str:
    """The results as a Markdown table."""
    columns = ["host", "flow", "test log-likelihood, nats ± 2 s.e.", "gain ± 2 s.e.", "parameters", "steps"]
    columns += [f"{SAMPLES} samples, ms", "round trip"]
    rows = list[list[object]]()
    for line in lines:
        name = line["config"]["model"]
        head = [MODELS[name].host, MODELS[name].title]
        if "failed" in line:
            rows.append([*head, line["failed"], *[""] * 5])
            continue
        level, spread = (shown(line[key], ".2f") for key in ("test_log_likelihood", "two_standard_errors"))
        rest = [f"{line['parameters']:,}", line["steps"], shown(line["sampling_ms"], ".0f")]
        rest.append(shown(line["round_trip_error"], ".0e"))
        rows.append([*head, f"{level} ± {spread}", found.get(name, ""), *rest])
    text = markdown(columns, rows)
    if any(line.get("sampling_ms", 0.0) is None for line in lines):
        text += (
            "\n\nWithout a time of sampling: some samples are NaN or infinite, or a transform of flowplug refused such."
        )
    return text


def conclusion(found: Mapping[str, Estimate], lines: Sequence[Line]) -> str:
    """What the gains come to, in a sentence or two."""
    better = [name for name, gain in found.items() if gain.mean > gain.error]
    worse = [name for name, gain in found.items() if gain.mean < -gain.error]
    unclear = [name for name in found if name not in better and name not in worse]
    levels = {line["config"]["model"]: line.get("test_log_likelihood") for line in lines}
    known = {name: level for name, level in levels.items() if level is not None}
    if not found or not known:
        return "Nothing to compare: a flow failed, or its plain one."
    said = f"flowplug improves {len(better)} of {len(found)} flows by more than two standard errors"
    if worse:
        said += f"; worse: {listed(worse)}"
    if unclear:
        said += f"; not to be told from these rows: {listed(unclear)}"
    best = max(known, key=known.__getitem__)
    return f"{said}. Best of all: {listed([best])}, {known[best]:.2f} nats."


def listed(names: Sequence[str]) -> str:
    """Models, as a sentence has them."""
    return ", ".join(f"{MODELS[name].host} {MODELS[name].title}" for name in names)


def draw_gains(found: Mapping[str, Estimate], path: Path, title: str) -> None:
    """Draws a bar for each gain."""
    plain = {name: listed([MODELS[name].plain or name]) for name in found}
    bars = [picture.Gain(plain[name], MODELS[name].title, gain) for name, gain in found.items()]
    picture.draw({title: bars}, path)


def draw_marginals(data: Table, lines: Sequence[Line], out: Path) -> None:
    """Draws the first two features of test rows and of each model's samples."""
    panels = {f"data: {data.name}": thinned(data.test, PLOTTED)[:, :2].cpu()}
    for line in lines:
        path = run_path(line["config"], out, "samples")
        if "failed" not in line and path.exists():
            title = f"{listed([line['config']['model']])}\n{line['test_log_likelihood']:.2f} nats"
            panels[title] = torch.load(path, weights_only=True)
    columns = min(len(panels), 5)
    rows = math.ceil(len(panels) / columns)
    size = (3 * columns, 3.2 * rows)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    low, high = data.test[:, :2].quantile(torch.tensor([0.005, 0.995], device=data.test.device), dim=0).cpu()
    margin = 0.1 * (high - low)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for i, (axis, (title, points)) in enumerate(zip(axes.flat, panels.items(), strict=False)):
        axis.scatter(points[:, 0], points[:, 1], s=4, alpha=0.4, color="C0" if i else "k")
        axis.set_title(title, fontsize=8)
        if not len(points):
            axis.text(0.5, 0.5, "samples are not finite", ha="center", transform=axis.transAxes)
        axis.set(xlim=(float(low[0] - margin[0]), float(high[0] + margin[0])))
        axis.set(ylim=(float(low[1] - margin[1]), float(high[1] + margin[1])))
    figure.supxlabel("feature 1, standardised")
    figure.supylabel("feature 2, standardised")
    figure.savefig(out / "marginals.png", dpi=120)
    plt.close(figure)


def report(lines: Sequence[Line], out: Path, data: Table, title: str) -> str:
    """Writes the results so far; returns what is shown at the end."""
    found = gains(lines, out)
    write_lines(out / "results.jsonl", lines)
    text = f"{table(lines, found)}\n\n{conclusion(found, lines)}"
    write_text(out / "results.md", f"{title}\n\n{text}\n")
    if found:
        draw_gains(found, out / "gains.png", title)
    draw_marginals(data, lines, out)
    return f"{text}\n\nwritten to {out}: results.md, results.jsonl, gains.png, marginals.png"


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, tests and reports every model."""
    options = parse(Options, arguments, description=__doc__)
    load = cache(tables.load)
    with refusing():
        data = load(options.data, torch.device(options.device))
    # What torch and nflows say of functions of their own is nothing that a user of them can mend.
    warnings.filterwarnings("ignore", category=UserWarning, module="nflows|normflows")
    budget = f"{options.steps} steps" if options.steps else f"{options.seconds or options.SECONDS:g} s"
    clock = "" if options.steps else " of CPU time" if options.device == "cpu" else " of wall time"
    title = (
        f"{data.name}: {len(data.train):,} training rows of {data.features} features; {budget}{clock} a flow on "
        f"{options.device}"
    )
    print(title)
    Grid(
        options,
        [options.data],
        configs=lambda source, processes: options.configs(source, processes.world),
        load=load,
        kind=Comparison,
        measured=partial(measured, out=options.out),
        report=partial(report, data=data, title=title),
        scripts=("examples/compare.py",),
    ).execute()


if __name__ == "__main__":
    torch.set_num_threads(1)  # CPU time of several threads depends on what else the machine does
    main()
