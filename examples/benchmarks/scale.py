"""Measures how time and memory of flows grow with features, rows and residual transforms, and what they consist of.

A training step is forward and backward of the log-likelihood, without the optimizer; an evaluation the exact
log-likelihood in eval mode; a sample what the host draws. Flows have started from noise and are not trained. Times are
CPU times, in turns; what takes more than a second is timed once. Memory is the peak of a process of its own, from the
flow on, beyond the bare process. Exponents are fitted by least squares on logarithms over the upper half of the sizes.

    python examples/benchmarks/scale.py
    python examples/benchmarks/scale.py --along features --phases evaluation
    python examples/benchmarks/scale.py --features 2 8 --rows 200 400 --blocks 1 2 --batch 100 --rounds 2
    cd examples && python -m benchmarks.scale_picture
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tqdm import tqdm

from benchmarks.costs.scaling import FLOWS, PHASES, WIDE, Case, parts_of, timed
from benchmarks.measurements import Figure, Measurement, Recorded, exponent, median, run
from common.command import among
from common.memory import peak_alone

AXES = {"features": "D", "rows": "rows", "blocks": "blocks"}
PARTS = "parts"


@dataclass(frozen=True)
class Settings(Recorded):
    """How far to go along each axis, and where the others stand."""

    features: tuple[int, ...] = (2, 8, 32, 64, 128, 256, 512, 1024)
    rows: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    blocks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    width: int = 16  # features along the other axes
    depth: int = 2  # blocks along the other axes
    batch: int = 256  # rows along the other axes
    chunk: int = 1000  # rows a batch along the axis of rows
    rounds: int = 9
    along: tuple[str, ...] = (PARTS, *AXES)  # what grows; parts are against features
    phases: tuple[str, ...] = PHASES

    def __post_init__(self) -> None:
        super().__post_init__()
        among(self, "along", (PARTS, *AXES))
        among(self, "phases", PHASES)


def cases(settings: Settings, axis: str, phase: str) -> Iterator[tuple[int, dict[str, Case]]]:
    """The sizes along an axis, and what is compared at each."""
    for size in getattr(settings, axis):
        chunk = settings.chunk if axis == "rows" else settings.batch
        case = Case("", phase, settings.width, settings.depth, settings.batch, chunk)
        case = replace(case, **{axis: size})
        kinds = [flow for flow in FLOWS if flow != WIDE or (axis == "features" and phase == "evaluation")]
        yield size, {flow: replace(case, flow=flow) for flow in kinds}


def growth(settings: Settings, axis: str, phase: str) -> Iterator[Measurement]:
    """Time and memory of a phase along an axis, and the exponents of both."""
    times, peaks = dict[str, dict[int, float]](), dict[str, dict[int, float]]()
    fixed = {"D": settings.width, "blocks": settings.depth, "rows": settings.batch}
    fixed |= {"rows a batch": settings.chunk} if axis == "rows" else {}
    for size, compared in tqdm(list(cases(settings, axis, phase)), desc=f"{phase}, {axis}"):
        seconds = timed({flow: case.prepared() for flow, case in compared.items()}, settings.rounds)
        for flow, case in compared.items():
            setting = {**fixed, "phase": phase, "flow": flow, AXES[axis]: size}
            milliseconds = [1e3 * time * case.rows / case.measured for time in seconds[flow]]
            time = median(milliseconds, "ms") if len(milliseconds) > 1 else Figure(milliseconds[0], "ms")
            yield f"Time against {axis}", setting, {"time": replace(time, quartiles=None)}
            small = replace(case, features=2, blocks=1, rows=2)
            peak = peak_alone(small.whole, case.whole)
            yield f"Memory against {axis}", setting, {"memory": Figure(peak, "MiB")}
            times.setdefault(flow, {})[size], peaks.setdefault(flow, {})[size] = time.value, peak
    for flow, found in times.items():
        figures = {"exponent of time": fitted(found), "exponent of memory": fitted(peaks[flow])}
        yield "Growth of flows", {"phase": phase, "flow": flow, "along": axis, "sizes": span(found)}, figures


def parts(settings: Settings, phase: str) -> Iterator[Measurement]:
    """What a residual flow spends where, against features."""
    times = dict[str, dict[int, float]]()
    for features in tqdm(settings.features, desc=f"parts of {phase}"):
        found = parts_of(phase, features, settings.depth, settings.batch, settings.rounds)
        for part, seconds in found.items():
            time = 1e3 * statistics.median(seconds)
            setting = {"flow": "residual", "blocks": settings.depth, "rows": settings.batch, "phase": phase}
            yield "Parts of a residual flow", {**setting, "part": part, "D": features}, {"time": Figure(time, "ms")}
            times.setdefault(part, {})[features] = time
    for part, known in times.items():
        figures = {"exponent of D": fitted(known), "twice the time of the fewest features, from D": doubled(known)}
        yield "Growth of the parts", {"phase": phase, "part": part, "sizes": span(known)}, figures


def upper(values: Mapping[int, float]) -> Sequence[int]:
    """The upper half of the sizes, at least three where there are as many."""
    sizes = sorted(values)
    return sizes[-max(3, len(sizes) // 2) :]


def span(values: Mapping[int, float]) -> str:
    """From which size to which a power is fitted."""
    return f"{upper(values)[0]:,} to {upper(values)[-1]:,}"


def fitted(values: Mapping[int, float]) -> Figure:
    """The exponent; not a number for one size, or where a part takes less time than its measurement is out by."""
    sizes = upper(values)
    return exponent(sizes, [values[size] for size in sizes]) if len(sizes) > 1 else Figure(math.nan)


def doubled(values: Mapping[int, float]) -> Figure:
    """The first size from which on all values are at least twice that of the smallest."""
    sizes = sorted(values)
    first = next((size for size in sizes if all(values[s] >= 2 * values[sizes[0]] for s in sizes if s >= size)), None)
    return Figure(math.nan if first is None else first)


def measure(settings: Settings) -> Iterator[Measurement]:
    """All phases along all axes, and the parts."""
    for axis in settings.along:
        for phase in settings.phases:
            yield from parts(settings, phase) if axis == PARTS else growth(settings, axis, phase)


if __name__ == "__main__":
    run(measure, Settings, __doc__)
