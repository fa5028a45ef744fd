"""Shows what it costs to invert a residual transform: the error against evaluations of g, for each solver and bound.

The networks are driven to their bound first, which is the hardest case. Printed are the evaluations of g per sample to
an error of 1e-3, 1e-6 and 1e-10 (float64); the picture shows the curves. Then a flow is sampled in bounded memory.

    python examples/sampling.py
    python examples/sampling.py --features 43 --samples 1000000
"""

import argparse
import resource
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from benchmarks.tables import Counting
from torch import Tensor
from tqdm import tqdm

import flowplug as fp

SOLVERS = {
    "FixedPoint": lambda tol: fp.FixedPoint(tol=tol),
    "Anderson(2)": lambda tol: fp.Anderson(memory=2, tol=tol),
    "Anderson(5)": lambda tol: fp.Anderson(memory=5, tol=tol),
    "Anderson(10)": lambda tol: fp.Anderson(memory=10, tol=tol),
}
TOLERANCES = [1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10]
SHOWN = (1e-3, 1e-6, 1e-10)


def stretched(features: int, bound: float, steps: int = 50) -> fp.LipschitzMLP:
    """A network whose Jacobians are driven to the bound."""
    g = fp.LipschitzMLP(features, bound=bound)
    transform = fp.ResidualTransform(g, logdet=fp.ExactLogDet())
    optimizer = torch.optim.Adam(g.parameters(), 0.01)
    for _ in range(steps):
        loss = transform(torch.randn(64, features))[1].mean()  # towards slopes of -bound, where x + g(x) is flattest
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return g


def curve(g: fp.LipschitzMLP, solver: str, x: Tensor) -> list[tuple[float, float]]:
    """(evaluations per sample, largest error) for every tolerance."""
    counting, points = Counting(g), []
    with torch.no_grad(), fp.no_logdet():
        y = x + g(x)
        for tolerance in TOLERANCES:
            transform = fp.ResidualTransform(counting, solver=SOLVERS[solver](tolerance))
            counting.samples = 0
            error = float((transform.inverse(y)[0] - x).abs().max())
            points.append((counting.samples / len(x), error))
    return points


def main() -> None:
    """Measures, prints and plots, then samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=10)
    parser.add_argument("--bounds", type=float, nargs="+", default=[0.5, 0.7, 0.9, 0.97, 0.99])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--samples", type=int, default=100_000, help="samples of the flow at the end")
    parser.add_argument("--out", type=Path, default=Path("sampling.png"))
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)

    x = torch.randn(options.rows, options.features)
    figure, panels = plt.subplots(
        1, len(options.bounds), figsize=(4 * len(options.bounds), 4), sharey=True, layout="constrained", squeeze=False
    )
    lines = []
    for bound, axes in zip(tqdm(options.bounds, desc="bounds"), panels[0], strict=True):
        g = stretched(options.features, bound)
        for solver in SOLVERS:
            points = curve(g, solver, x)
            axes.plot(*zip(*points, strict=True), marker=".", label=solver)
            counts = [points[TOLERANCES.index(min(TOLERANCES, key=lambda t: abs(t - tol)))][0] for tol in SHOWN]
            lines.append(f"{bound:5.2f}  {solver:13}" + "".join(f"{count:10.1f}" for count in counts))
        axes.set(yscale="log", xscale="log", xlabel="evaluations of g per sample", title=f"bound {bound:g}")
    panels[0, 0].set_ylabel("largest error")
    panels[0, 0].legend(fontsize="small")
    figure.savefig(options.out, dpi=120)
    print(f"evaluations of g per sample\nbound  {'solver':13}" + "".join(f"{tol:>10g}" for tol in SHOWN))
    print("\n".join(lines))
    print(f"wrote {options.out}")

    torch.set_default_dtype(torch.float32)
    flow = fp.ComposedTransform(*(fp.ResidualTransform(fp.LipschitzMLP(options.features)) for _ in range(4))).eval()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    samples = torch.empty(options.samples, options.features)
    # One call would do as well, in pieces of max_rows; this one reports its progress.
    with torch.no_grad(), fp.no_logdet():
        for part in tqdm(samples.split(20_000), desc="sampling"):
            part.copy_(flow.inverse(torch.randn_like(part))[0])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    size = samples.nbytes / 2**20
    print(f"{options.samples} samples of {size:.0f} MiB took {grown:.0f} MiB of memory beyond what was in use")


if __name__ == "__main__":
    main()
