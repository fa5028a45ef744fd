"""Measures what splines of the features are worth before any training, and what they add to a training step.

Starts: log-likelihoods of test rows after a start from 2,000 training rows, on a standard normal: whitening alone (a
Gaussian), an independent histogram of each feature, the splines alone, and splines with a whitening behind, at the
share of normal scores they choose and at all of it. Steps: forward and backward of a batch, with and without the
splines in front, of flows of about 100,000 parameters, in turn; the ratio is of CPU times.

    python examples/benchmarks/marginals.py
    python examples/benchmarks/marginals.py --data power.npz protein.npz --rounds 41
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

import flowplug as fp
from benchmarks.measurements import Figure, Measurement, Recorded, over, run
from common import tables
from common.clock import paired
from common.command import among, refusing
from common.densities import Density, log_prob, of_transform
from common.tables import Table
from common.training import compiled, nll
from uci.models import MARGINAL, NAMES, make

CELLS = 50  # of a histogram, with equally many rows in each
FLOWS = ("residual", "zuko-maf", "zuko-nsf", "nflows-rqs", "normflows-realnvp")


@dataclass(frozen=True)
class Settings(Recorded):
    """What to start from, and what to time."""

    data: tuple[str, ...] = (tables.EMBEDDED,)  # .npz files with train, val and test, or breast-cancer
    rows: int = 2000  # that a start takes
    flows: tuple[str, ...] = FLOWS  # to time, of those of uci.py
    parameters: int = 100_000  # of each, about
    batch: int = 512
    rounds: int = 21
    compile: bool = False  # time steps under torch.compile

    def __post_init__(self) -> None:
        super().__post_init__()
        among(self, "flows", [name for name in NAMES if name + MARGINAL in NAMES])


def thinned(rows: Tensor, most: int) -> Tensor:
    """Every k-th row, so that there are at most so many."""
    return rows[:: math.ceil(len(rows) / most)]


def histogram(x: Tensor, rows: Tensor) -> Tensor:
    """Log-likelihoods of rows by histograms of each feature, from ``x``; exponential beyond the outermost cells."""
    edges = x.quantile(torch.linspace(0, 1, CELLS + 1), dim=0).T.contiguous()
    scale = x.std(0)[:, None]
    edges = edges + torch.linspace(0, 0.02, CELLS + 1) * scale  # apart where values tie, as in the splines
    width = edges.diff()
    cell = torch.searchsorted(edges, rows.T.contiguous()) - 1
    mass = math.log((1 - 1 / len(x)) / CELLS) - width.log()
    beyond = torch.maximum(edges[:, :1] - rows.T, rows.T - edges[:, -1:]).clamp(min=0)
    tail = -math.log(2 * len(x)) - scale.log() - beyond / scale
    return torch.where(beyond > 0, tail, pad(mass, (0, 1)).gather(1, cell.clamp(0, CELLS))).sum(0)


@torch.no_grad()
def starts(settings: Settings, data: Table) -> Iterator[Measurement]:
    """What each start says of test rows."""
    x, features = thinned(data.train, settings.rows), data.features
    marginals = partial(fp.MarginalGaussianization, features)
    transforms: dict[str, fp.Transform] = {
        "whitening": fp.Whitening(features),
        "splines": marginals(share=1.0),
        "splines, whitening": fp.ComposedTransform(marginals(), fp.Whitening(features)),
        "all the way, whitening": fp.ComposedTransform(marginals(share=1.0), fp.Whitening(features)),
    }
    values = {"histogram": histogram(x, data.test)}
    for name, transform in transforms.items():
        transform.start(x)
        values[name] = log_prob(transform.eval(), data.test)
    figures = {
        name: Figure(float(value.mean()), "nats", 2 * float(value.std()) / math.sqrt(len(value)))
        for name, value in values.items()
    }
    yield "Marginals before training", {"data": data.name, "D": features, "rows": len(x)}, figures


def steps(settings: Settings, data: Table) -> Iterator[Measurement]:
    """Every flow with and without splines in front, and a flow of these alone."""
    x = thinned(data.train, settings.rows)
    for name in settings.flows:
        flows = {key: make(name + key, data.features, settings.parameters) for key in ("", MARGINAL)}
        flows["alone"] = of_transform(fp.MarginalGaussianization(data.features), data.features)
        for flow in flows.values():
            flow.start(x)
        loss = {key: nll(compiled(flow) if settings.compile else flow) for key, flow in flows.items()}
        works = {key: partial(step, flow, loss[key], x[: settings.batch]) for key, flow in flows.items()}
        times = paired(works, settings.rounds, warm=5)
        setting = {"data": data.name, "D": data.features, "rows": settings.batch, "flow": name}
        setting |= {"compiled": "yes" if settings.compile else "no"}
        figures = {
            "with / without": over(times[MARGINAL], times[""]),
            "splines / flow": over(times["alone"], times[""]),
        }
        yield "Cost of marginals", setting, figures


def step(flow: Density, loss: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Forward and backward."""
    torch.autograd.backward(loss(x))
    for parameter in flow.parameters():
        parameter.grad = None


def measure(settings: Settings) -> Iterator[Measurement]:
    """Starts and steps on every table."""
    with refusing():
        loaded = [tables.load(source) for source in settings.data]
    for data in tqdm(loaded):
        yield from starts(settings, data)
        yield from steps(settings, data)


if __name__ == "__main__":
    run(measure, Settings, __doc__)
