"""Shows what it costs to invert a residual transform: the error against evaluations of g, for each solver and bound.

The networks are driven to their bound first, which is the hardest case. Printed are the evaluations of g per sample to
an error of 1e-3, 1e-6 and 1e-10 (float64); the picture shows the curves. Then a flow is sampled in bounded memory.

    python examples/tutorials/sampling.py
    python examples/tutorials/sampling.py --features 43 --samples 1000000
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from tqdm import tqdm

import flowplug as fp
from benchmarks.models import inverted
from common import memory
from common.axes import label_counts
from common.command import fractions, parse, sound
from common.report import markdown
from common.training import Options as Schedule
from common.training import Training, constant

SOLVERS: dict[str, Callable[[float], fp.FixedPoint | fp.Anderson]] = {
    "FixedPoint": lambda tol: fp.FixedPoint(tol=tol),
    "Anderson(2)": lambda tol: fp.Anderson(memory=2, tol=tol),
    "Anderson(5)": lambda tol: fp.Anderson(memory=5, tol=tol),
    "Anderson(10)": lambda tol: fp.Anderson(memory=10, tol=tol),
}
TOLERANCES = [1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10]
SHOWN = (1e-3, 1e-6, 1e-10)


@dataclass(frozen=True)
class Options:
    """What to invert."""

    features: int = 10
    bounds: tuple[float, ...] = (0.5, 0.7, 0.9, 0.97, 0.99)
    rows: int = 200
    samples: int = 100_000  # samples of the flow at the end
    out: Path = Path("sampling.png")

    def __post_init__(self) -> None:
        sound(self)
        fractions(self, "bounds")


def stretched(features: int, bound: float) -> fp.LipschitzMLP:
    """A network whose Jacobians are driven to the bound, towards slopes of -bound, where x + g(x) is flattest."""
    g = fp.LipschitzMLP(features, bound=bound)
    transform = fp.ResidualTransform(g, logdet=fp.ExactLogDet())
    schedule = Schedule(steps=50, lr=0.01, batch=64, schedule=constant)
    Training(g, lambda x: transform(x)[1].mean(), lambda rows: torch.randn(rows, features), schedule).run()
    return g


@torch.no_grad()
def curve(g: fp.LipschitzMLP, solver: str, x: Tensor) -> dict[float, tuple[float, float]]:
    """(evaluations per sample, largest error) for every tolerance."""
    points = {}
    for tolerance in TOLERANCES:
        back, evaluations = inverted(g, SOLVERS[solver](tolerance), x + g(x))
        points[tolerance] = (evaluations, float((back - x).abs().max()))
    return points


def compare(options: Options) -> None:
    """Prints and draws the curves."""
    x, count = torch.randn(options.rows, options.features, dtype=torch.float64), len(options.bounds)
    figure, panels = plt.subplots(1, count, figsize=(4 * count, 4), sharey=True, layout="constrained", squeeze=False)
    rows = []
    for bound, axes in zip(tqdm(options.bounds, desc="bounds"), panels[0], strict=True):
        g = stretched(options.features, bound).double()
        for solver in SOLVERS:
            points = curve(g, solver, x)
            axes.plot(*zip(*points.values(), strict=True), marker=".", label=solver)
            rows.append([bound, solver, *(f"{points[tolerance][0]:.1f}" for tolerance in SHOWN)])
        axes.set(yscale="log", xscale="log", xlabel="evaluations of g per sample", title=f"bound {bound:g}")
        label_counts(axes.xaxis)
    panels[0, 0].set_ylabel("largest error")
    panels[0, 0].legend(fontsize="small")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=120)
    print("evaluations of g per sample\n\n" + markdown(["bound", "solver", *map(str, SHOWN)], rows))
    print(f"\nwrote {options.out}")


def sample(options: Options) -> None:
    """Samples a flow, and prints the memory it takes."""
    flow = fp.ComposedTransform(*(fp.ResidualTransform(fp.LipschitzMLP(options.features)) for _ in range(4))).eval()
    before = memory.peak()
    samples = torch.empty(options.samples, options.features)
    # One call would do as well, in pieces of chunk_size; this one reports its progress.
    with torch.no_grad(), fp.no_logdet():
        for part in tqdm(torch.split(samples, 20_000), desc="sampling"):
            part.copy_(flow.inverse(torch.randn_like(part))[0])
    grown, size = memory.peak() - before, samples.nbytes / 2**20
    print(f"{options.samples} samples of {size:.0f} MiB took {grown:.0f} MiB of memory beyond what was in use")


def main() -> None:
    """Compares solvers, then samples."""
    options = parse(Options, description=__doc__)
    torch.manual_seed(0)
    compare(options)
    sample(options)


if __name__ == "__main__":
    main()
