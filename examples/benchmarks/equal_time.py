"""Compares residual flows at their defaults with normflows' own and with zuko's Real NVP, at equal CPU time.

Each model trains with AdamW and a cosine schedule on one thread. Twenty times validation rows are evaluated, outside
the time that counts, and the test rows once, at the best of these points. Learning rates were chosen on validation
rows, for each model its own.

    python examples/benchmarks/equal_time.py
    python examples/benchmarks/equal_time.py --data FILE.npz --seconds 100
    python examples/benchmarks/equal_time.py --data miniboone.npz --seconds 60 --lr 3e-3 --weight-decay 0.3
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import zuko

import flowplug as fp
import flowplug_zuko
from benchmarks.measurements import Figure, Measurements, Recorded
from benchmarks.models import fit, mean_log_likelihood, normflows_residual
from common.command import among, parse
from common.densities import Density, log_likelihoods, of_transform, of_zuko, size
from common.tables import EMBEDDED, load
from common.training import Options as Schedule
from common.training import rows_of


def same_networks(features: int, blocks: int) -> Density:
    """The networks, norm, bounds and ActNorm of normflows' flow, in flowplug, but for the Swish of the inputs."""
    parts: list[fp.Transform] = []
    for _ in range(blocks):
        g = fp.LipschitzMLP(features, (128, 128), norm=fp.Gram(), activation=fp.LipSwish, bound=0.9**3, zero_last=True)
        parts += [fp.ActNorm(features), fp.ResidualTransform(g)]
    return of_transform(fp.ComposedTransform(*parts), features)


MODELS: dict[str, tuple[Callable[[int, int], Density], float]] = {  # with the learning rate
    "flowplug ResidualFlow": (lambda d, blocks: of_zuko(flowplug_zuko.ResidualFlow(d, transforms=blocks)), 5e-3),
    "normflows Residual": (lambda d, blocks: normflows_residual(d, (128, 128), blocks), 2e-3),
    "its networks, flowplug": (same_networks, 2e-3),
    "zuko RealNVP": (
        lambda d, blocks: of_zuko(zuko.flows.RealNVP(d, transforms=blocks, hidden_features=(128, 128))),
        1e-3,
    ),
}


@dataclass(frozen=True)
class Options(Recorded):
    """What to train, and for how long."""

    data: str = EMBEDDED  # .npz file with arrays train, val and test, or that table
    seconds: float = 30  # CPU seconds of training each
    blocks: int = 8  # transforms of each flow
    rows: int = 5000  # at most so many validation and test rows
    seeds: tuple[int, ...] = (0,)
    only: tuple[str, ...] = tuple(MODELS)  # models to train
    lr: float | None = None  # in place of the learning rates of the script
    weight_decay: float = 0.0  # of AdamW

    def __post_init__(self) -> None:
        among(self, "only", MODELS)


def main() -> None:
    """Trains every model."""
    options = parse(Options, description=__doc__)
    torch.set_num_threads(1)
    table, measurements = load(options.data), Measurements("equal_time")
    val, test = table.val[: options.rows], table.test[: options.rows]
    for seed in options.seeds:
        for name in options.only:
            torch.manual_seed(seed)
            make, lr = MODELS[name]
            density = make(table.features, options.blocks)
            schedule = Schedule(
                seconds=options.seconds,
                clock=time.process_time,
                lr=options.lr or lr,
                weight_decay=options.weight_decay,
                checks=20,
            )
            evaluate = partial(mean_log_likelihood, density, val)
            training = fit(density, rows_of(table.train), schedule, name, evaluate)
            training.restore()
            values = log_likelihoods(density, test)
            error = 2 * float(values.std()) / math.sqrt(len(values))
            figures: dict[str, Figure | float] = {
                "test log-likelihood": Figure(float(values.mean()), "nats", two_standard_errors=error),
                "validation": Figure(training.best, "nats"),
                "best after": Figure(max(training.curve, key=lambda point: point[2])[0], "s"),
                "steps": training.step,
                "parameters": size(density),
            }
            setting = {"seconds": options.seconds, "model": name, "transforms": options.blocks, "seed": seed}
            setting |= {"rows": options.rows}
            if options.weight_decay:
                setting |= {"lr": schedule.lr, "weight decay": options.weight_decay}
            kind = "with weight decay" if options.weight_decay else "at equal time"
            measurements.add(f"Residual flows {kind}", {**setting, "data": table.name}, figures)
    measurements.publish(options.record)


if __name__ == "__main__":
    main()
