"""Times `PowerSeries` against `Krylov` where g is no chain: a dense network, and one that flowplug knows nothing of.

A training step is forward and backward of residual blocks. Both series take as many products: those of the roulette
that is the default of `PowerSeries`, of which rows drop out one after the other; beside them `Krylov` at its own
default, of about 2.5 products. ``unknown`` is the same network behind a module of no known kind, whose products walk
the graph of an evaluation. The ratio is of CPU times (on a GPU, of the times until it is done).

    python examples/benchmarks/series.py
    python examples/benchmarks/series.py --features 43 --hidden 128 128 128
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

import flowplug as fp
from benchmarks.measurements import Measurement, Recorded, hardware, median, over, run
from benchmarks.models import Counting, likelihood_loss
from common.clock import paired, seconds

EQUAL = fp.PowerSeries().terms
ESTIMATES = {"PowerSeries": fp.PowerSeries(), "Krylov": fp.Krylov(terms=EQUAL), "Krylov, default": fp.Krylov()}


@dataclass(frozen=True)
class Settings(Recorded):
    """What to time, and how."""

    features: int = 10
    hidden: tuple[int, ...] = (64, 64, 64)
    blocks: int = 8
    batch: int = 256
    rounds: int = 9
    device: str = "cpu"


def step(transforms: list[fp.ResidualTransform], x: Tensor) -> None:
    """Forward and backward."""
    torch.autograd.backward(likelihood_loss(transforms, x))


def measure(settings: Settings) -> Iterator[Measurement]:
    """Both networks, all in turn."""
    torch.set_default_device(settings.device)
    x = torch.randn(settings.batch, settings.features)
    dense = [fp.LipschitzDenseNet(settings.features, settings.hidden) for _ in range(settings.blocks)]
    networks: dict[str, list[nn.Module]] = {"dense": [*dense], "unknown": [Counting(g) for g in dense]}
    for network, modules in tqdm(networks.items()):
        steps = {
            name: partial(step, [fp.ResidualTransform(g, logdet=logdet) for g in modules], x)
            for name, logdet in ESTIMATES.items()
        }
        times = paired(steps, settings.rounds, clock=partial(seconds, settings.device))
        for name, own in times.items():
            setting = {"device": hardware(), "D": settings.features, "rows": len(x), "hidden": settings.hidden}
            figures = {
                "over Krylov of as many products": over(own, times["Krylov"]),
                "step": median([1e3 * time for time in own], "ms"),
            }
            yield "Series of general networks", {**setting, "network": network, "log-det": name}, figures


if __name__ == "__main__":
    run(measure, Settings, __doc__)
