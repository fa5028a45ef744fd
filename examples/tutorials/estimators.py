"""Shows what log-det estimators cost and how much they scatter, on a block of a residual flow trained on real data.

For every estimator: vector-Jacobian products per sample, standard deviation of the value, relative standard deviation
of the gradient, and the largest z-score of their means against the exact log-det, under random weights of the samples.
The picture shows both deviations against products, and how the variance of the published estimator never settles.

    python examples/estimators.py
    python examples/estimators.py --data FILE.npz --draws 20000
"""

import argparse
import itertools
import math
import statistics
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from benchmarks.tables import load_table, residual_flow, train
from torch import Tensor
from tqdm import tqdm

import flowplug as fp

PROJECTIONS = 8


def half(exact: int) -> fp.Roulette:
    """The roulette of the paper, with so many exact terms: one more product on average."""
    return fp.Roulette(fp.Geometric(0.5), exact=exact)


FAMILIES = {
    "PowerSeries": lambda exact: fp.PowerSeries(terms=half(exact)),
    "Krylov, no control": lambda exact: fp.Krylov(terms=half(exact), control=None),
    "Krylov": lambda exact: fp.Krylov(terms=half(exact)),
}
OTHERS = {
    "PowerSeries, Certified": fp.PowerSeries(),
    "PowerSeries, Poisson(2)": fp.PowerSeries(terms=fp.Roulette(fp.Poisson(2.0), exact=2)),
    "Krylov, default": fp.Krylov(),
    "Krylov, default, two probes": fp.Krylov(probes=fp.Rademacher(samples=2)),
}


@dataclass
class Scatter:
    """The estimates of one estimator so far."""

    name: str
    products: float
    value: float = 0.0
    gradient: float = 0.0
    z: float = 0.0
    variances: list[float] = field(default_factory=list)


def products(terms: fp.Roulette, rows: int, bound: float) -> float:
    """Average number of products per sample."""
    return statistics.fmean(
        sum(count for _, count in terms.schedule(rows, lambda: bound, None)) / rows for _ in range(1000)
    )


def measure(name: str, logdet: fp.PowerSeries | fp.Krylov, g: fp.LipschitzMLP, x: Tensor, draws: int) -> Scatter:
    """Draws the estimate repeatedly."""
    weights = torch.rand(len(x))
    parameters = list(g.parameters())

    def sample(estimator: fp.LogDet) -> tuple[Tensor, Tensor]:
        ladj = fp.ResidualTransform(g, logdet=estimator)(x)[1]
        gradients = torch.autograd.grad(weights @ ladj, parameters, allow_unused=True, materialize_grads=True)
        return ladj.detach(), torch.cat([part.flatten() for part in gradients])

    truth = sample(fp.ExactLogDet())
    cost = logdet.probes.samples * products(logdet.terms, len(x), float(fp.lipschitz_bound(g)))
    scatter = Scatter(name, cost)
    directions = torch.randn(PROJECTIONS, len(truth[1])) / math.sqrt(len(truth[1]))
    wanted = torch.cat([truth[0], directions @ truth[1]])
    total, squares, value, gradient = torch.zeros_like(wanted), torch.zeros_like(wanted), 0.0, 0.0
    for i in range(1, draws + 1):
        ladj, slope = sample(logdet)
        deviation = torch.cat([ladj, directions @ slope]) - wanted
        total, squares = total + deviation, squares + deviation.square()
        value += float((ladj - truth[0]).square().mean())
        gradient += float((slope - truth[1]).square().sum() / truth[1].square().sum())
        scatter.variances.append(value / i)
    mean, variance = total / draws, squares / draws
    scatter.z = float((mean / ((variance - mean.square()) / draws).sqrt()).abs().max())
    scatter.value, scatter.gradient = math.sqrt(value / draws), math.sqrt(gradient / draws)
    return scatter


def plot(results: dict[str, list[Scatter]], others: list[Scatter], path: Path) -> None:
    """Deviations against products, and the running variance of the value."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for axes, part in ((left, "value"), (middle, "gradient")):
        for name, scatters in results.items():
            axes.plot([s.products for s in scatters], [getattr(s, part) for s in scatters], marker="o", label=name)
        for scatter in others:
            axes.plot(scatter.products, getattr(scatter, part), "x", label=scatter.name)
        axes.set(xscale="log", yscale="log", xlabel="products per sample")
    left.set(ylabel="standard deviation of the value (nats)")
    middle.set(ylabel="standard deviation of the gradient / its norm")
    middle.legend(fontsize="small")
    for name, scatters in results.items():
        right.plot(scatters[1].variances, label=f"{name}, {scatters[1].products:.1f} products")
    right.set(xscale="log", yscale="log", xlabel="draws", ylabel="variance of the value so far (nats$^2$)")
    right.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Trains, measures, prints and plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=".npz with arrays train and val; default: UCI Breast Cancer")
    parser.add_argument("--steps", type=int, default=1000, help="training steps of the flow")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--exact", type=int, nargs="+", default=[1, 2, 3, 5, 8], help="exact terms to try")
    parser.add_argument("--out", type=Path, default=Path("estimators.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    # This example shows what the warning is about.
    warnings.simplefilter("ignore", fp.InfiniteVarianceWarning)

    rows, _ = load_table(options.data)
    flow = residual_flow(rows.shape[1], blocks=4)
    for _ in tqdm(train(flow, rows, options.steps), total=options.steps, desc="training"):
        pass
    x, blocks = rows[: options.rows], []
    with torch.no_grad():
        for part in flow.transforms:
            if isinstance(part, fp.ResidualTransform):
                radius = float(torch.linalg.eigvals(part.g.branch(None).jacobian(x)[1]).abs().max())
                blocks.append((radius, part.g, x))
            x = part(x)[0]
    radius, g, x = max(blocks, key=lambda block: block[0])
    print(f"the block with the largest spectral radius, {radius:.2f}, on {len(x)} samples of {x.shape[1]} dimensions")

    jobs = [(name, make(exact), name) for name, make in FAMILIES.items() for exact in options.exact]
    jobs += [(name, logdet, "") for name, logdet in OTHERS.items()]
    results: dict[str, list[Scatter]] = {name: [] for name in ("", *FAMILIES)}
    for name, logdet, family in tqdm(jobs, desc="estimators"):
        results[family].append(measure(name, logdet, g, x, options.draws))
    others = results.pop("")
    print(f"{'estimator':28} {'products':>8} {'std value':>10} {'std gradient':>12} {'max |z|':>8}")
    for scatter in itertools.chain(*results.values(), others):
        print(
            f"{scatter.name:28} {scatter.products:8.2f} {scatter.value:10.3g} {scatter.gradient:12.3g} {scatter.z:8.2f}"
        )
    plot(results, others, options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
