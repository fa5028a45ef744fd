"""Compares residual flows at their defaults with normflows' own and with zuko's Real NVP, at equal CPU time.

Each model trains with AdamW and a cosine schedule on one thread. Twenty times validation rows are evaluated, outside
the time that counts, and the test rows once, at the best of these points. Learning rates were chosen on validation
rows, for each model its own. With --compile all but normflows' own, which torch.compile refuses, train under it; they
are compiled before their time starts.

    python examples/benchmarks/equal_time.py
    python examples/benchmarks/equal_time.py --data FILE.npz --seconds 100
    python examples/benchmarks/equal_time.py --data miniboone.npz --seconds 60 --lr 3e-3 --weight-decay 0.3
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import zuko

import flowplug as fp
import flowplug_zuko
from benchmarks.measurements import Figure, Measurement, Recorded, run
from benchmarks.models import normflows_residual
from common.command import among, refusing
from common.densities import Density, log_likelihoods, of_transform, of_zuko, size
from common.tables import EMBEDDED, load
from common.training import Options, rows_of
from common.trial import ROWS, fit, mean_log_likelihood


def same_networks(features: int, blocks: int) -> Density:
    """The networks, norm, bounds and ActNorm of normflows' flow, in flowplug, but for the Swish of the inputs."""
    parts: list[fp.Transform] = []
    for _ in range(blocks):
        g = fp.LipschitzMLP(features, (128, 128), norm=fp.Gram(), activation=fp.LipSwish, bound=0.9**3, zero_last=True)
        parts += [fp.ActNorm(features), fp.ResidualTransform(g)]
    return of_transform(fp.ComposedTransform(*parts), features)


MODELS: dict[str, tuple[float, Callable[[int, int], Density]]] = {  # learning rate, and a flow of (features, blocks)
    "flowplug ResidualFlow": (5e-3, lambda d, n: of_zuko(flowplug_zuko.ResidualFlow(d, transforms=n))),
    "normflows Residual": (2e-3, lambda d, n: normflows_residual(d, (128, 128), n)),
    "its networks, flowplug": (2e-3, same_networks),
    "zuko RealNVP": (1e-3, lambda d, n: of_zuko(zuko.flows.RealNVP(d, transforms=n, hidden_features=(128, 128)))),
}


EAGER = ("normflows Residual",)  # torch.compile refuses its double backward


@dataclass(frozen=True)
class Settings(Recorded):
    """What to train, and for how long."""

    data: str = EMBEDDED  # .npz file with arrays train, val and test, or that table
    seconds: float = 30  # CPU seconds of training each
    blocks: int = 8  # transforms of each flow
    rows: int = 5000  # at most so many validation and test rows
    seeds: tuple[int, ...] = (0,)
    only: tuple[str, ...] = tuple(MODELS)  # models to train
    lr: float | None = None  # in place of the learning rates of the script
    weight_decay: float = 0.0  # of AdamW
    compile: bool = False  # train under torch.compile

    def __post_init__(self) -> None:
        super().__post_init__()
        among(self, "only", MODELS)


def measure(settings: Settings) -> Iterator[Measurement]:
    """Every model for every seed."""
    with refusing():
        table = load(settings.data)
    for seed in settings.seeds:
        for name in settings.only:
            torch.manual_seed(seed)
            lr, make = MODELS[name]
            density, decay = make(table.features, settings.blocks), settings.weight_decay
            density.start(table.train[:ROWS])
            options = Options(
                seconds=settings.seconds,
                clock=time.process_time,
                lr=settings.lr or lr,
                weight_decay=decay,
                checks=20,
                compile=settings.compile and name not in EAGER,
            )
            evaluate = partial(mean_log_likelihood, density, table.val[: settings.rows])
            training = fit(density, rows_of(table.train), options, name, evaluate)
            training.restore()
            values = log_likelihoods(density, table.test[: settings.rows])
            error = 2 * float(values.std()) / math.sqrt(len(values))
            figures: dict[str, Figure | float] = {
                "test log-likelihood": Figure(float(values.mean()), "nats", two_standard_errors=error),
                "validation": Figure(training.best, "nats"),
                "best after": Figure(max(training.curve, key=lambda point: point[2])[0], "s"),
                "steps": training.step,
                "parameters": size(density),
            }
            setting = {"seconds": settings.seconds, "model": name, "transforms": settings.blocks, "seed": seed}
            setting |= {"rows": settings.rows}
            if decay:
                setting |= {"lr": options.lr, "weight decay": decay}
            if options.compile:
                setting |= {"compiled": "yes"}
                figures |= {"compiling": Figure(training.compiling, "s")}
            kind = "with weight decay" if decay else "at equal time"
            yield f"Residual flows {kind}", {**setting, "data": table.name}, figures


if __name__ == "__main__":
    run(measure, Settings, __doc__)
