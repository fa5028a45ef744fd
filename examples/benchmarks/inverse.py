"""Tests and times the inverse: many points, trained blocks, and normflows.

1. Round trips of many points, standard normal and ten times that, through 8 residual transforms at their bound.
2. Evaluations of g per sample to an error of 1e-6, plain and accelerated, on the blocks of a trained flow (float64).
3. Sampling from one flow of normflows' networks, by normflows' own residual transforms and by flowplug's: wall time and
   error, the latter against the same solution to rounding in float64.

    python examples/benchmarks/inverse.py
    python examples/benchmarks/inverse.py --points 1000000 --data FILE.npz
"""

import copy
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import normflows as nf
import torch
from tqdm import tqdm

import flowplug as fp
import flowplug_normflows
from benchmarks.measurements import Figure, Measurement, Recorded, median, over, run
from benchmarks.models import inverted, residual_parts, trained_stack
from common.clock import paired
from common.command import at_least, refusing
from common.tables import EMBEDDED, Table, load
from common.training import Options, Training, constant, rows_of


@dataclass(frozen=True)
class Settings(Recorded):
    """What to invert."""

    data: str = EMBEDDED  # .npz file with arrays train, val and test, or that table
    points: int = 100_000
    features: int = 6
    steps: int = 1000  # of training the flow in part 2, thrice those of 3
    rounds: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 3, "steps")


def round_trips(settings: Settings) -> Iterator[Measurement]:
    """The largest error of ``inverse(forward(x)) - x`` for each bound, dtype and spread."""
    for bound in (0.97, 0.99):
        for dtype in (torch.float32, torch.float64):
            torch.manual_seed(0)
            networks = [fp.LipschitzMLP(settings.features, (32,), bound=bound) for _ in range(8)]
            flow = fp.ComposedTransform(*map(fp.ResidualTransform, networks)).to(dtype)
            for spread in (1, 10):
                x, worst = spread * torch.randn(settings.points, settings.features, dtype=dtype), 0.0
                with torch.no_grad(), fp.no_logdet():
                    for part in tqdm(torch.split(x, 50_000), desc=f"bound {bound}, {dtype}", leave=False):
                        worst = max(worst, float((flow.inverse(flow(part)[0])[0] - part).abs().max()))
                setting = {"points": settings.points, "D": settings.features, "bound": bound, "dtype": str(dtype)}
                yield "Round trips", {**setting, "standard deviation": spread}, {"largest error": worst}


def trained_blocks(settings: Settings, table: Table) -> Iterator[Measurement]:
    """Evaluations per sample on each trained block."""
    flow = trained_stack(table.train, 6, settings.steps)
    for number, (part, x) in enumerate(residual_parts(flow, table.train[:1000]), 1):
        for solver in (fp.FixedPoint(tol=1e-6), fp.Anderson(tol=1e-6)):
            back, evaluations = inverted(part.g, solver, x + part.g(x).detach())
            error = float((back - x).abs().max())
            setting = {"data": table.name, "block": number, "solver": type(solver).__name__}
            figures = {"evaluations a sample": evaluations, "largest error": error}
            yield "Evaluations of g to an error of 1e-6", setting, figures


def against_normflows(settings: Settings, table: Table) -> Iterator[Measurement]:
    """Time and error of sampling the same flow in both libraries."""
    # normflows' networks keep their bound by a call after each step, which is made below.
    warnings.filterwarnings("ignore", category=fp.UnboundedBranchWarning)
    widths = [table.features, 128, 128, table.features]
    networks = [nf.nets.LipschitzMLP(widths, init_zeros=False, lipschitz_const=0.9) for _ in range(8)]
    base = nf.distributions.DiagGaussian(table.features, trainable=False)
    samplers = {"normflows": nf.NormalizingFlow(base, [nf.flows.Residual(net) for net in networks])}
    for tol in (1e-2, 1e-3, 1e-4, None):
        parts = [fp.ResidualTransform(net, solver=fp.Anderson(tol=tol)) for net in networks]
        flows = [flowplug_normflows.NormflowsFlow(part) for part in parts]
        samplers[f"flowplug, tol {tol}"] = nf.NormalizingFlow(base, flows)
    last, options = samplers["flowplug, tol None"], Options(steps=settings.steps // 3, lr=2e-3, schedule=constant)
    update = partial(nf.utils.update_lipschitz, last, 5)
    Training(last, last.forward_kld, rows_of(table.train.float()), options, after_step=update).run()
    z = base.sample(1000)
    # Sampling does not need the log-det; normflows' transforms compute it anyway.
    with torch.no_grad(), fp.no_logdet():
        exact = copy.deepcopy(last).double().eval()(z.double())
        calls = {name: partial(model.eval(), z) for name, model in samplers.items()}
        times = paired(calls, settings.rounds, warm=1, clock=time.perf_counter)
        for name, call in calls.items():
            figures: dict[str, Figure | float] = {
                "time": median([1e3 * time for time in times[name]], "ms"),
                "normflows / this": over(times["normflows"], times[name]),
                "largest error": float((call() - exact).abs().max()),
            }
            setting = {"data": table.name, "samples": len(z), "sampler": name}
            yield "Samples of one flow in both libraries", setting, figures


def measure(settings: Settings) -> Iterator[Measurement]:
    """The three parts."""
    with refusing():
        table = load(settings.data, dtype=torch.float64)
    yield from round_trips(settings)
    yield from trained_blocks(settings, table)
    yield from against_normflows(settings, table)


if __name__ == "__main__":
    run(measure, Settings, __doc__)
