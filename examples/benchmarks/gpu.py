"""Times training steps on a GPU, eager, compiled and as CUDA graphs, and counts how often the host waits in one.

A step is forward and backward, without the optimizer, of a residual flow at its defaults and of zuko's neural spline
flow; the time is from a GPU at rest until it is done. `torch.cuda.set_sync_debug_mode` counts waits. Most time goes by
with compiling: no flow is begun after --seconds. Without a GPU the script ends with a line that says so.

    python examples/benchmarks/gpu.py
    python examples/benchmarks/gpu.py --features 6 --modes eager compiled
"""

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.costs.flows import backward, residual_flow, spline_flow, started
from benchmarks.measurements import Figure, Measurement, Recorded, hardware, median, over, run
from benchmarks.models import Loss
from common.clock import paired, seconds
from common.command import OptionError, among
from common.densities import Density
from common.training import WARM, nll

MODES = {"eager": None, "compiled": "default", "replayed": "reduce-overhead"}  # of torch.compile
FLOWS: dict[str, Callable[[int], Density]] = {
    "ResidualFlow x 8": lambda features: residual_flow(features, 8),
    "zuko NSF x 3": lambda features: spline_flow(features, 3),
}


@dataclass(frozen=True)
class Settings(Recorded):
    """What to time."""

    features: tuple[int, ...] = (6, 43, 63)
    rows: int = 256
    rounds: int = 50
    modes: tuple[str, ...] = tuple(MODES)
    flows: tuple[str, ...] = tuple(FLOWS)
    seconds: float = 400  # after which no flow is begun
    device: str = "cuda"

    def __post_init__(self) -> None:
        super().__post_init__()
        among(self, "modes", MODES)
        among(self, "flows", FLOWS)
        if "eager" not in self.modes:
            raise OptionError("--modes must have eager, which the others are compared with")


def waits(step: Callable[[], object], device: str) -> int | None:
    """How often the host waits for the GPU in a step; None where it is no GPU of CUDA."""
    if torch.device(device).type != "cuda":
        return None
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def loss_in(mode: str, flow: nn.Module) -> Loss:
    """The negative log-likelihood, compiled or not."""
    if MODES[mode] is None:
        return nll(flow)
    return nll(torch.compile(flow, mode=MODES[mode]))


def measure(settings: Settings) -> Iterator[Measurement]:
    """Every flow of every width."""
    torch.set_default_device(settings.device)
    end = time.perf_counter() + settings.seconds
    for features in tqdm(settings.features):
        for name in settings.flows:
            if time.perf_counter() > end:
                tqdm.write(f"{name} of {features} features is left out: {settings.seconds:g} s are over")
                continue
            flow, x = started(FLOWS[name](features).to(settings.device), settings.rows, features)
            torch.compiler.reset()
            steps = {mode: partial(backward, loss_in(mode, flow), x) for mode in settings.modes}
            clock = partial(seconds, settings.device)
            times = paired(steps, settings.rounds, warm=WARM, clock=clock, before=flow.zero_grad)
            for mode, own in times.items():
                figures: dict[str, Figure | float] = {
                    "step": median([1e3 * time for time in own], "ms"),
                    "eager / this": over(times["eager"], own),
                }
                if (count := waits(steps[mode], settings.device)) is not None:
                    figures |= {"waits of the host": count}
                setting = {"device": hardware(), "rows": settings.rows, "flow": name, "mode": mode, "D": features}
                yield "Training steps on a GPU", setting, figures


if __name__ == "__main__":
    run(measure, Settings, __doc__)
