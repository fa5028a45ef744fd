"""Time, and ratios of times: of callables timed in turn, as a machine's speed changes over minutes."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


def seconds(device: str | torch.device = "cpu") -> float:
    """CPU time of this process, or the time at which a GPU has done what it was given."""
    if torch.device(device).type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def paired(
    steps: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm: int = 2,
    clock: Callable[[], float] = seconds,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each callable in each round: all are called in turn, round by round.

    Args:
        steps: What to time, by name.
        rounds: Times each is timed.
        warm: Rounds before these, which do not count.
        clock: Tells the seconds; on a GPU ``partial(seconds, "cuda")``.
        before: Called before each call, outside its time.

    Example:
        >>> times = paired({"a": lambda: sum(range(10)), "b": lambda: None}, rounds=3)
        >>> {name: len(values) for name, values in times.items()}
        {'a': 3, 'b': 3}
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + warm):
        for name, step in steps.items():
            before()
            start = clock()
            step()
            times[name].append(clock() - start)
    return {name: values[warm:] for name, values in times.items()}


@dataclass(frozen=True)
class Ratio:
    """One time by another: the quartiles of all rounds, and the ratio of the totals."""

    low: float
    median: float
    high: float
    total: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio(times: Sequence[float], others: Sequence[float]) -> Ratio:
    """The times by the others, round by round.

    Example:
        >>> print(ratio([2.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]))
        2.00 [1.25, 2.75]
    """
    low, median, high = statistics.quantiles([one / other for one, other in zip(times, others, strict=True)], n=4)
    return Ratio(low, median, high, sum(times) / sum(others))
