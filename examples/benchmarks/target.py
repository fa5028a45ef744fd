"""Measures how much sooner a residual flow reaches the validation log-likelihood that normflows' own ends with.

normflows trains its residual flow (LipSwish networks, 2-norm, ActNorm, ``update_lipschitz`` after every step, Adam) for
the given CPU seconds; its best validation log-likelihood is the target. What counts is the CPU time each needs to reach
it, training steps alone, evaluations excluded. With --compile flowplug's trains under torch.compile, which refuses
normflows', and is compiled before its time starts.

    python examples/benchmarks/target.py
    python examples/benchmarks/target.py --data FILE.npz --seconds 120
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

import flowplug as fp
from benchmarks.measurements import Figure, Measurement, Recorded, run
from benchmarks.models import normflows_residual
from common.command import refusing
from common.densities import Density, of_transform
from common.tables import EMBEDDED, Table, load
from common.training import Options, Training, constant, nll, rows_of, watched
from common.trial import ROWS, mean_log_likelihood


@dataclass(frozen=True)
class Settings(Recorded):
    """What to train."""

    data: str = EMBEDDED  # .npz file with arrays train, val and test, or that table
    seconds: float = 60  # CPU seconds of training for normflows
    blocks: int = 8
    lr: tuple[float, ...] = (1e-3, 2e-3, 5e-3)  # learning rates for normflows
    rows: int = 2000  # validation rows
    every: int = 25  # steps between two validations
    compile: bool = False  # train under torch.compile


def curve(
    name: str, density: Density, table: Table, settings: Settings, options: Options, target: float = float("inf")
) -> Iterator[tuple[float, float]]:
    """Validation log-likelihoods and CPU seconds until then, to the end of the time or the target."""
    sample = rows_of(table.train)
    density.start(table.train[:ROWS])
    loss = nll(density, compile=options.compile)
    training = Training(density, loss, sample, options, after_step=density.after_step)
    for _ in watched(training, name):
        over = training.elapsed > settings.seconds
        if over or training.step % settings.every == 0:
            value = mean_log_likelihood(density, table.val[: settings.rows])
            yield value, training.elapsed
            if over or value >= target:
                return


def measure(settings: Settings) -> Iterator[Measurement]:
    """Both times."""
    points = list[tuple[float, float, str]]()
    with refusing():
        table = load(settings.data)
    for lr in settings.lr:
        torch.manual_seed(0)
        density, name = normflows_residual(table.features, (128, 128), settings.blocks), f"normflows, lr {lr:g}"
        options = Options(seconds=settings.seconds, clock=time.process_time, lr=lr, schedule=constant)
        points += [(*point, name) for point in curve(name, density, table, settings, options)]
    target, needed, best = max(points, key=lambda point: (point[0], -point[1]))
    torch.manual_seed(0)
    density = of_transform(fp.ResidualStack(table.features, settings.blocks), table.features)
    options = Options(steps=2000, clock=time.process_time, compile=settings.compile)
    value, spent = max(curve("flowplug", density, table, settings, options, target))
    for name, level, sooner in ((best, target, needed), ("flowplug", value, spent)):
        setting = {"data": table.name, "blocks": settings.blocks, "seconds": settings.seconds, "model": name}
        if settings.compile and name == "flowplug":
            setting |= {"compiled": "yes"}
        figures = {"validation log-likelihood": Figure(level, "nats"), "CPU time": Figure(sooner, "s")}
        if level >= target:
            figures["sooner than normflows"] = Figure(needed / sooner, "times")
        yield "Time to the log-likelihood of normflows", setting, figures


if __name__ == "__main__":
    run(measure, Settings, __doc__)
