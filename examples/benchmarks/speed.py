"""Times a training step of residual blocks against the bare networks and against normflows.

One step is forward and backward of the loss, without the optimizer, which is the same for all. The floor is
``x + g(x)`` of the same networks without any log-det, weights bounded once per step as always. All are timed in turn,
round by round. The ratios are of total times, as lengths of series vary, with the middle half of all rounds. With
--compile all but normflows', which torch.compile refuses, are timed under it too, and compared with bare networks that
are compiled as well.

    python examples/benchmarks/speed.py
    python examples/benchmarks/speed.py --only default "Krylov, 2 terms" --compile
    python examples/benchmarks/speed.py --hidden 128 --blocks 8 --batch 256
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import flowplug as fp
from benchmarks.measurements import Measurement, Recorded, hardware, median, over, run
from benchmarks.models import Loss, loss_of
from common.clock import paired, seconds
from common.command import among
from common.densities import normflows_density
from common.layers import residual_block
from common.training import nll

ESTIMATORS: dict[str, fp.LogDet | None] = {
    "default": None,
    "Krylov, 2 terms": fp.Krylov(terms=fp.Truncated(2)),
    "Krylov, Recompute": fp.Krylov(gradient=fp.Recompute()),
    "PowerSeries": fp.PowerSeries(),
    "ExactLogDet": fp.ExactLogDet(),
}


@dataclass(frozen=True)
class Settings(Recorded):
    """What to time, and how."""

    features: int = 43
    hidden: tuple[int, ...] = (128, 128, 128)
    blocks: int = 8
    batch: int = 512
    rounds: int = 15
    compile: bool = False  # also time all under torch.compile
    only: tuple[str, ...] = tuple(ESTIMATORS)  # log-dets to time
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        among(self, "only", ESTIMATORS)


def bare(g: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The floor: no log-det."""
    return x + g(x), x.new_zeros(len(x))


def measure(settings: Settings) -> Iterator[Measurement]:
    """Every estimator."""
    torch.set_default_device(settings.device)
    x = torch.randn(settings.batch, settings.features)
    networks = [fp.LipschitzMLP(settings.features, settings.hidden) for _ in range(settings.blocks)]
    widths = [settings.features, *settings.hidden, settings.features]
    layers = [layer for _ in networks for layer in residual_block(widths)[1:]]
    normflows = normflows_density(settings.features, layers).to(settings.device)

    losses: dict[str, Loss] = {
        "none": loss_of([partial(bare, g) for g in networks]),
        "normflows": nll(normflows),
    }
    for name in settings.only:
        transforms = [fp.ResidualTransform(g, logdet=ESTIMATORS[name]) for g in networks]
        losses[name] = loss_of(transforms)
    kinds: dict[tuple[str, str], Loss] = {(name, "no"): loss for name, loss in losses.items()}  # compiled or not
    if settings.compile:
        torch._dynamo.config.cache_size_limit *= len(losses)  # of a function, which all losses here share
        kinds |= {(name, "yes"): torch.compile(loss) for name, loss in losses.items() if name != "normflows"}

    def step(name: str, loss: Loss) -> None:
        if name == "normflows":  # as it trains
            normflows.after_step()
        torch.autograd.backward(loss(x))

    times = paired(
        {str(key): partial(step, key[0], loss) for key, loss in kinds.items()},
        settings.rounds,
        warm=15 if settings.compile else 2,
        clock=partial(seconds, settings.device),
        before=nn.ModuleList([*networks, normflows]).zero_grad,
    )
    for name, kind in kinds:
        own = times[str((name, kind))]
        figures = {
            "over bare networks": over(own, times[str(("none", kind))], total=True),
            "over normflows": over(own, times[str(("normflows", "no"))], total=True),
            "step": median([1e3 * time for time in own], "ms"),
        }
        setting = {"device": hardware(), "D": settings.features, "rows": len(x), "hidden": settings.hidden}
        setting |= {"log-det": name}
        yield "Cost of a training step", {**setting, "compiled": kind}, figures
        if kind == "yes":
            gain = over(own, times[str((name, "no"))], total=True)
            yield "Steps under torch.compile", setting, {"compiled / not": gain}


if __name__ == "__main__":
    run(measure, Settings, __doc__)
