"""Times `ExactLogDet` against the stochastic default over the dimension of the events.

A training step is forward and backward of one residual block, an evaluation its forward pass in eval mode, both on rows
of the given batch. The ratio is of CPU times (on a GPU, of the times until it is done), exact over estimate: on CPUs
the default changes from exact to stochastic where it passes 1.

    python examples/benchmarks/breakeven.py
    python examples/benchmarks/breakeven.py --device cuda --batch 4096
    python examples/benchmarks/breakeven.py --hidden 128 128 128
    python examples/benchmarks/breakeven.py --compile
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

import flowplug as fp
from benchmarks.measurements import Measurement, Recorded, hardware, median, over, run
from benchmarks.models import loss_of
from common.clock import paired, seconds

ESTIMATES = {"training": fp.Krylov(), "evaluation": fp.Krylov(terms=fp.Converged(1e-4))}


@dataclass(frozen=True)
class Settings(Recorded):
    """How to measure."""

    features: tuple[int, ...] = (2, 6, 10, 21, 43, 63, 128, 784)
    hidden: tuple[int, ...] = (128,)
    batch: int = 256
    rounds: int = 9
    device: str = "cpu"
    compile: bool = False  # both under torch.compile


def step(loss: Callable[[Tensor], Tensor], x: Tensor, *, training: bool) -> None:
    """One step in train mode, one evaluation in eval mode."""
    with torch.set_grad_enabled(training):
        value = loss(x)
    if training:
        torch.autograd.backward(value)


def measure(settings: Settings) -> Iterator[Measurement]:
    """Both modes in every dimension."""
    torch.set_default_device(settings.device)
    for features in tqdm(settings.features):
        x, g = torch.randn(settings.batch, features), fp.LipschitzMLP(features, settings.hidden)
        for mode, estimate in ESTIMATES.items():
            parts = {
                name: fp.ResidualTransform(g, logdet=logdet, eval_logdet=logdet).train(mode == "training")
                for name, logdet in (("exact", fp.ExactLogDet()), ("estimate", estimate))
            }
            losses = {name: loss_of([part]) for name, part in parts.items()}
            if settings.compile:
                torch.compiler.reset()
                losses = {name: torch.compile(loss) for name, loss in losses.items()}
            steps = {name: partial(step, loss, x, training=mode == "training") for name, loss in losses.items()}
            warm = 15 if settings.compile else 2
            times = paired(steps, settings.rounds, warm=warm, clock=partial(seconds, settings.device))
            network = f"LipschitzMLP(D, {settings.hidden})"
            setting = {"mode": mode, "device": hardware(), "network": network, "rows": len(x), "D": features}
            if settings.compile:
                setting |= {"compiled": "yes"}
            figure = over(times["exact"], times["estimate"])
            yield "Exact or estimated log-dets", setting, {"exact / estimate": figure}
            figure = median([1e6 * time / len(x) for time in times["exact"]], "µs a row")
            yield "Exact log-dets by the row", setting, {"exact": figure}


if __name__ == "__main__":
    run(measure, Settings, __doc__)
