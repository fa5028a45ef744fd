"""Times a training step of residual blocks against the bare networks and against normflows.

One step is forward and backward of the loss, without the optimizer, which is the same for all. The floor is
``x + g(x)`` of the same networks without any log-det, weights bounded once per step as always. All are timed in turn,
round by round. The ratios are of total times, as lengths of series vary, with the middle half of all rounds.

    python examples/benchmarks/speed.py
    python examples/benchmarks/speed.py --only default "Krylov, 2 terms" --compile
    python examples/benchmarks/speed.py --hidden 128 --blocks 8 --batch 256
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import flowplug as fp
from benchmarks.measurements import Measurement, Recorded, hardware, median, over, run
from benchmarks.models import likelihood_loss
from common.clock import paired, seconds
from common.command import among
from common.densities import normflows_density
from common.layers import residual_block

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
    compile: bool = False  # also time transforms under torch.compile
    only: tuple[str, ...] = tuple(ESTIMATORS)  # log-dets to time
    device: str = "cpu"

    def __post_init__(self) -> None:
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

    def theirs() -> Tensor:
        normflows.after_step()
        loss: Tensor = -normflows(x).mean()
        return loss

    losses: dict[tuple[str, str], Callable[[], Tensor]] = {  # of a log-det, compiled or not
        ("none", "no"): partial(likelihood_loss, [partial(bare, g) for g in networks], x),
        ("normflows", "no"): theirs,
    }
    for name in settings.only:
        transforms = [fp.ResidualTransform(g, logdet=ESTIMATORS[name]) for g in networks]
        losses[name, "no"] = partial(likelihood_loss, transforms, x)
        if settings.compile and isinstance(ESTIMATORS[name], fp.Krylov | None):
            losses[name, "yes"] = partial(likelihood_loss, [torch.compile(part) for part in transforms], x)
    steps = {str(key): lambda loss=loss: torch.autograd.backward(loss()) for key, loss in losses.items()}
    times = paired(
        steps,
        settings.rounds,
        warm=15 if settings.compile else 2,
        clock=partial(seconds, settings.device),
        before=nn.ModuleList([*networks, normflows]).zero_grad,
    )
    for key in losses:
        own = times[str(key)]
        figures = {
            "over bare networks": over(own, times[str(("none", "no"))], total=True),
            "over normflows": over(own, times[str(("normflows", "no"))], total=True),
            "step": median([1e3 * time for time in own], "ms"),
        }
        setting = {"device": hardware(), "D": settings.features, "rows": len(x), "hidden": settings.hidden}
        yield "Cost of a training step", {**setting, "log-det": key[0], "compiled": key[1]}, figures


if __name__ == "__main__":
    run(measure, Settings, __doc__)
