"""Measures how much sooner a residual flow reaches the validation log-likelihood that normflows' own ends with.

normflows trains its residual flow (LipSwish networks, 2-norm, ActNorm, ``update_lipschitz`` after every step, Adam) for
the given CPU seconds; its best validation log-likelihood is the target. What counts is the CPU time each needs to reach
it, training steps alone, evaluations excluded.

    python examples/benchmarks/target.py
    python examples/benchmarks/target.py --data FILE.npz --seconds 120
"""

import time
from dataclasses import dataclass

import torch

import flowplug as fp
from benchmarks.measurements import Figure, Measurements, Recorded
from benchmarks.models import mean_log_likelihood, normflows_residual
from common.command import parse
from common.densities import Density, of_transform
from common.tables import EMBEDDED, load
from common.training import Options as Schedule
from common.training import Training, constant, nll, rows_of, watched


@dataclass(frozen=True)
class Options(Recorded):
    """What to train."""

    data: str = EMBEDDED  # .npz file with arrays train, val and test, or that table
    seconds: float = 60  # CPU seconds of training for normflows
    blocks: int = 8
    lr: tuple[float, ...] = (1e-3, 2e-3, 5e-3)  # learning rates for normflows
    rows: int = 2000  # validation rows
    every: int = 25  # steps between two validations


def main() -> None:
    """Measures both times."""
    options = parse(Options, description=__doc__)
    torch.set_num_threads(1)
    table = load(options.data)
    val = table.val[: options.rows]

    def curve(name: str, density: Density, schedule: Schedule, target: float) -> list[tuple[float, float]]:
        """Validation log-likelihoods and CPU seconds until then, to the end of the time or the target."""
        points = list[tuple[float, float]]()
        training = Training(density, nll(density), rows_of(table.train), schedule, after_step=density.after_step)
        for _ in watched(training, name):
            over = training.elapsed > options.seconds
            if over or training.step % options.every == 0:
                points.append((mean_log_likelihood(density, val), training.elapsed))
                if over or points[-1][0] >= target:
                    break
        return points

    best = (-float("inf"), 0.0, 0.0)
    for lr in options.lr:
        torch.manual_seed(0)
        density = normflows_residual(table.features, (128, 128), options.blocks)
        schedule = Schedule(seconds=options.seconds, clock=time.process_time, lr=lr, schedule=constant)
        for value, spent in curve(f"normflows, lr {lr:g}", density, schedule, float("inf")):
            best = max(best, (value, -spent, lr))
    torch.manual_seed(0)
    density = of_transform(fp.ResidualStack(table.features, options.blocks), table.features)
    points = curve("flowplug", density, Schedule(steps=2000, clock=time.process_time), best[0])

    measurements = Measurements("target")
    for name, (value, spent) in {f"normflows, lr {best[2]:g}": (best[0], -best[1]), "flowplug": max(points)}.items():
        setting = {"data": table.name, "blocks": options.blocks, "seconds": options.seconds, "model": name}
        figures = {
            "validation log-likelihood": Figure(value, "nats"),
            "CPU time": Figure(spent, "s"),
            "sooner than normflows": Figure(-best[1] / spent if value >= best[0] else float("nan"), "times"),
        }
        measurements.add("Time to the log-likelihood of normflows", setting, figures)
    measurements.publish(options.record)


if __name__ == "__main__":
    main()
