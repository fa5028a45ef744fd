"""Measures the peak memory of log-det training, one process per setting.

By how much the peak resident memory of one forward and backward pass exceeds that of the bare process, and the share of
differentiating the series (`Autograd`) with as many terms.

    python examples/benchmarks/memory.py
    python examples/benchmarks/memory.py --batch 512 --blocks 8
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from tqdm import tqdm

import flowplug as fp
from benchmarks.measurements import Figure, Measurement, Recorded, run
from benchmarks.models import likelihood_loss
from common.memory import peak_alone

GRADIENTS: dict[str, Callable[[fp.Truncated], fp.LogDet]] = {
    "Autograd": lambda terms: fp.PowerSeries(terms=terms, gradient=fp.Autograd()),
    "Neumann": lambda terms: fp.PowerSeries(terms=terms),
    "Recompute": lambda terms: fp.PowerSeries(terms=terms, gradient=fp.Recompute()),
    "Krylov Neumann": lambda terms: fp.Krylov(terms=terms),
    "Krylov Recompute": lambda terms: fp.Krylov(terms=terms, gradient=fp.Recompute()),
}


@dataclass(frozen=True)
class Settings(Recorded):
    """What to train."""

    features: int = 43
    hidden: tuple[int, ...] = (128, 128, 128)
    blocks: int = 16
    batch: int = 2048
    terms: tuple[int, ...] = (2, 10, 40)


def step(settings: Settings, name: str, terms: int, rows: int) -> None:
    """Forward and backward of one batch."""
    networks = [fp.LipschitzMLP(settings.features, settings.hidden) for _ in range(settings.blocks)]
    transforms = [fp.ResidualTransform(g, logdet=GRADIENTS[name](fp.Truncated(terms))) for g in networks]
    torch.autograd.backward(likelihood_loss(transforms, torch.randn(rows, settings.features)))


def measure(settings: Settings) -> Iterator[Measurement]:
    """Every gradient for every number of terms."""
    reference = dict[int, float]()
    common = {"blocks": settings.blocks, "D": settings.features, "hidden": settings.hidden, "rows": settings.batch}
    for name in tqdm(GRADIENTS):
        for terms in settings.terms:
            work = partial(step, settings, name, terms)
            peak = peak_alone(partial(work, 2), partial(work, settings.batch))
            share = 100 * peak / reference.setdefault(terms, peak)
            figures = {"peak": Figure(peak, "MiB"), "share of Autograd": Figure(share, "%")}
            yield "Memory of a training step", {**common, "gradient": name, "terms": terms}, figures


if __name__ == "__main__":
    run(measure, Settings, __doc__)
