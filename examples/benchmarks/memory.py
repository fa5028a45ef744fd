"""Measures the peak memory of log-det training, one process per setting.

By how much the peak resident memory of one forward and backward pass exceeds that of the bare process, and the ratio to
differentiating the series (`Autograd`) with as many terms.

    python examples/benchmarks/memory.py
    python examples/benchmarks/memory.py --batch 512 --blocks 8
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from tqdm import tqdm

import flowplug as fp
from benchmarks.measurements import Figure, Measurements, Recorded
from benchmarks.models import likelihood_loss
from common.command import parse
from common.memory import peak_alone

GRADIENTS: dict[str, Callable[[fp.Truncated], fp.LogDet]] = {
    "Autograd": lambda terms: fp.PowerSeries(terms=terms, gradient=fp.Autograd()),
    "Neumann": lambda terms: fp.PowerSeries(terms=terms),
    "Recompute": lambda terms: fp.PowerSeries(terms=terms, gradient=fp.Recompute()),
    "Krylov Neumann": lambda terms: fp.Krylov(terms=terms),
    "Krylov Recompute": lambda terms: fp.Krylov(terms=terms, gradient=fp.Recompute()),
}


@dataclass(frozen=True)
class Options(Recorded):
    """What to train."""

    features: int = 43
    hidden: tuple[int, ...] = (128, 128, 128)
    blocks: int = 16
    batch: int = 2048
    terms: tuple[int, ...] = (2, 10, 40)


def step(options: Options, name: str, terms: int, rows: int) -> None:
    """Forward and backward of one batch."""
    networks = [fp.LipschitzMLP(options.features, options.hidden) for _ in range(options.blocks)]
    logdet = GRADIENTS[name](fp.Truncated(terms))
    transforms = [fp.ResidualTransform(g, logdet=logdet) for g in networks]
    likelihood_loss(transforms, torch.randn(rows, options.features)).backward()  # type: ignore[no-untyped-call]


def main() -> None:
    """Measures every gradient for every number of terms."""
    options = parse(Options, description=__doc__)
    measurements, reference = Measurements("memory"), dict[int, float]()
    setting = {"blocks": options.blocks, "D": options.features, "hidden": options.hidden, "rows": options.batch}
    for name in tqdm(GRADIENTS):
        for terms in options.terms:
            mebibytes = peak_alone(
                partial(step, options, name, terms, 2), partial(step, options, name, terms, options.batch)
            )
            figures = {
                "peak": Figure(mebibytes, "MiB"),
                "share of Autograd": Figure(100 * mebibytes / reference.setdefault(terms, mebibytes), "%"),
            }
            measurements.add("Memory of a training step", setting | {"gradient": name, "terms": terms}, figures)
    measurements.publish(options.record)


if __name__ == "__main__":
    main()
