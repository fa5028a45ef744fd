"""Shows what log-det estimators cost and how much they scatter, on a block of a residual flow trained on real data.

For every estimator: vector-Jacobian products per sample, standard deviation of the value, relative standard deviation
of the gradient, and the largest z-score of their means against the exact log-det, under random weights of the samples.
The picture shows both deviations against products, and how the variance of the published estimator never settles.

    python examples/tutorials/estimators.py
    python examples/tutorials/estimators.py --data FILE.npz --draws 20000
"""

import itertools
import math
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from tqdm import tqdm

import flowplug as fp
from benchmarks.models import jacobians, residual_parts, trained_stack
from common.axes import label_counts
from common.command import parse, refusing, sound
from common.report import markdown
from common.tables import EMBEDDED, load

PROJECTIONS = 8


def half(exact: int) -> fp.Roulette:
    """The roulette of the paper, with so many exact terms: one more product on average."""
    return fp.Roulette(fp.Geometric(0.5), exact=exact)


FAMILIES: dict[str, Callable[[int], fp.Series]] = {
    "PowerSeries": lambda exact: fp.PowerSeries(terms=half(exact)),
    "Krylov, no control": lambda exact: fp.Krylov(terms=half(exact), control=None),
    "Krylov": lambda exact: fp.Krylov(terms=half(exact)),
}
OTHERS: dict[str, fp.Series] = {
    "PowerSeries, Certified": fp.PowerSeries(),
    "PowerSeries, Poisson(2)": fp.PowerSeries(terms=fp.Roulette(fp.Poisson(2.0), exact=2)),
    "Krylov, default": fp.Krylov(),
    "Krylov, default, two probes": fp.Krylov(probes=fp.Rademacher(samples=2)),
}


@dataclass(frozen=True)
class Options:
    """What to train, and how often to estimate."""

    data: str = EMBEDDED  # .npz file with arrays train, val and test, or that table
    steps: int = 1000  # training steps of the flow
    draws: int = 400
    rows: int = 16
    exact: tuple[int, ...] = (1, 2, 3, 5, 8)  # exact terms to try
    out: Path = Path("estimators.png")

    def __post_init__(self) -> None:
        sound(self)


@dataclass(frozen=True)
class Scatter:
    """The estimates of one estimator; ``variances`` are those of the value after every draw."""

    name: str
    products: float
    value: float
    gradient: float
    z: float
    variances: list[float]


def products(logdet: fp.Series, rows: int, branch: fp.Branch) -> float:
    """Average number of products per sample."""
    lengths = (sum(count for _, count in logdet.terms.schedule(rows, branch, None)) for _ in range(1000))
    return logdet.probes.samples * statistics.fmean(lengths) / rows


def measure(name: str, logdet: fp.Series, g: nn.Module, x: Tensor, draws: int) -> Scatter:
    """Draws the estimate repeatedly."""
    weights, parameters = torch.rand(len(x)), list(g.parameters())

    def sample(estimator: fp.LogDet) -> tuple[Tensor, Tensor]:
        ladj = fp.ResidualTransform(g, logdet=estimator)(x)[1]
        gradients = torch.autograd.grad(weights @ ladj, parameters, allow_unused=True, materialize_grads=True)
        return ladj.detach(), torch.cat([part.flatten() for part in gradients])

    value, gradient = sample(fp.ExactLogDet())
    directions = torch.randn(PROJECTIONS, len(gradient)) / math.sqrt(len(gradient))
    squares, deviations = [], []
    for _ in range(draws):
        ladj, slope = sample(logdet)
        squares.append([float((ladj - value).square().mean()), float((slope - gradient).square().sum())])
        deviations.append(torch.cat([ladj - value, directions @ (slope - gradient)]))
    totals, sampled = torch.tensor(squares).cumsum(0), torch.stack(deviations)
    z = sampled.mean(0) / (sampled.var(0, correction=0) / draws).sqrt()
    return Scatter(
        name,
        products(logdet, len(x), fp.Branch.of(g, None)),
        value=math.sqrt(totals[-1, 0] / draws),
        gradient=math.sqrt(totals[-1, 1] / draws) / float(gradient.norm()),
        z=float(z.abs().max()),
        variances=(totals[:, 0] / torch.arange(1, draws + 1)).tolist(),
    )


def plot(families: dict[str, list[Scatter]], others: list[Scatter], path: Path) -> None:
    """Deviations against products, and the running variance of the value."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for axes, part in ((left, "value"), (middle, "gradient")):
        for name, scatters in families.items():
            axes.plot([s.products for s in scatters], [getattr(s, part) for s in scatters], marker="o", label=name)
        for scatter in others:
            axes.plot(scatter.products, getattr(scatter, part), "x", label=scatter.name)
        axes.set(xscale="log", yscale="log", xlabel="products per sample")
        label_counts(axes.xaxis)
    left.set(ylabel="standard deviation of the value (nats)")
    middle.set(ylabel="standard deviation of the gradient / its norm")
    middle.legend(fontsize="small")
    for name, scatters in families.items():
        second = scatters[:2][-1]
        right.plot(second.variances, label=f"{name}, {second.products:.1f} products")
    right.set(xscale="log", yscale="log", xlabel="draws", ylabel="variance of the value so far (nats$^2$)")
    right.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Trains, measures, prints and plots."""
    options = parse(Options, description=__doc__)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    # This example shows what the warning is about.
    warnings.simplefilter("ignore", fp.InfiniteVarianceWarning)

    with refusing():
        table = load(options.data, dtype=torch.float64)
    flow = trained_stack(table.train, 4, options.steps)
    blocks = [
        (float(torch.linalg.eigvals(jacobians(part, x)).abs().max()), part.g, x)
        for part, x in residual_parts(flow, table.train[: options.rows])
    ]
    radius, g, x = max(blocks, key=lambda block: block[0])
    print(f"the block with the largest spectral radius, {radius:.2f}, on {len(x)} samples of {x.shape[1]} dimensions\n")

    bar = tqdm(total=len(FAMILIES) * len(options.exact) + len(OTHERS), desc="estimators")

    def scatter(name: str, logdet: fp.Series) -> Scatter:
        bar.update()
        return measure(name, logdet, g, x, options.draws)

    families = {name: [scatter(name, make(exact)) for exact in options.exact] for name, make in FAMILIES.items()}
    others = [scatter(name, logdet) for name, logdet in OTHERS.items()]
    rows = [
        [s.name, f"{s.products:.2f}", f"{s.value:.3g}", f"{s.gradient:.3g}", f"{s.z:.2f}"]
        for s in itertools.chain(*families.values(), others)
    ]
    print(markdown(["estimator", "products", "std value", "std gradient", "largest z"], rows))
    plot(families, others, options.out)
    print(f"\nwrote {options.out}")


if __name__ == "__main__":
    main()
