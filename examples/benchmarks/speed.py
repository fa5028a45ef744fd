"""Times a training step of residual blocks against the bare networks and against normflows.

One step is forward and backward of the loss, without the optimizer, which is the same for all. The floor is
``x + g(x)`` of the same networks without any log-det, weights bounded once per step as always. All are timed in turn,
round by round. The ratios are of total times, as lengths of series vary, with the middle half of all rounds.

    python examples/benchmarks/speed.py
    python examples/benchmarks/speed.py --only default "Krylov, 2 terms" --compile
    python examples/benchmarks/speed.py --hidden 128 --blocks 8 --batch 256
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import flowplug as fp
from benchmarks.measurements import Measurements, Recorded, hardware, median, over
from benchmarks.models import bare_loss, likelihood_loss
from common.clock import paired, seconds
from common.command import among, parse
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
class Options(Recorded):
    """What to time, and how."""

    features: int = 43
    hidden: tuple[int, ...] = (128, 128, 128)
    blocks: int = 8
    batch: int = 512
    rounds: int = 15
    threads: int = 1
    compile: bool = False  # also time transforms under torch.compile
    only: tuple[str, ...] = tuple(ESTIMATORS)  # log-dets to time
    device: str = "cpu"

    def __post_init__(self) -> None:
        among(self, "only", ESTIMATORS)


def main() -> None:
    """Times every estimator."""
    options = parse(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    torch.set_default_device(options.device)
    torch.manual_seed(0)
    x = torch.randn(options.batch, options.features)
    networks = [fp.LipschitzMLP(options.features, options.hidden) for _ in range(options.blocks)]
    widths = [options.features, *options.hidden, options.features]
    others = [layer for _ in networks for layer in residual_block(widths)[1:]]
    normflows = normflows_density(options.features, others).to(options.device)

    def of_normflows() -> Tensor:
        normflows.after_step()
        loss: Tensor = -normflows(x).mean()
        return loss

    bare, theirs = ("none", "no"), ("normflows", "no")
    losses: dict[tuple[str, str], Callable[[], Tensor]] = {bare: partial(bare_loss, networks, x), theirs: of_normflows}
    for name in options.only:
        transforms = [fp.ResidualTransform(network, logdet=ESTIMATORS[name]) for network in networks]
        losses[name, "no"] = partial(likelihood_loss, transforms, x)
        if options.compile and isinstance(ESTIMATORS[name], fp.Krylov | None):
            losses[name, "yes"] = partial(likelihood_loss, [torch.compile(part) for part in transforms], x)

    parameters = list(nn.ModuleList([*networks, normflows]).parameters())

    def forget() -> None:
        for parameter in parameters:
            parameter.grad = None

    steps = {str(key): lambda loss=loss: loss().backward() for key, loss in losses.items()}
    warm = 15 if options.compile else 2
    times = paired(steps, options.rounds, warm=warm, clock=partial(seconds, options.device), before=forget)

    measurements = Measurements("speed")
    setting = {"device": hardware(options.device), "D": options.features, "rows": options.batch}
    for name, compiled in losses:
        own = times[str((name, compiled))]
        figures = {
            "over bare networks": over(own, times[str(bare)], total=True),
            "over normflows": over(own, times[str(theirs)], total=True),
            "step": median([1e3 * time for time in own], "ms"),
        }
        kind = {"hidden": options.hidden, "log-det": name, "compiled": compiled}
        measurements.add("Cost of a training step", setting | kind, figures)
    measurements.publish(options.record, options.device)


if __name__ == "__main__":
    main()
