"""What runs say of each row: means and paired differences, kept with results, as the rows themselves are not."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from common.paired import Estimate, of_rows
from common.report import finite, read_lines, write_lines
from common.runs import Config, Line, log_likelihoods, name_of

NAME = "rows.jsonl"
Quantity = Callable[[Line, Tensor], Tensor]  # of a line and what its run says of each row, one number for each row


def log_likelihood(_: Line, values: Tensor) -> Tensor:
    """What the run says, in nats."""
    return values


class Rows:
    """The means of a folder, from rows where they are there, else as they were kept.

    Args:
        out: Where the runs are, and ``rows.jsonl`` comes to be.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.known = {key_of(line): line for line in read_lines(out / NAME)}
        self.used = dict[tuple[str, ...], Line]()

    def __call__(
        self, line: Line, less: Line | None = None, quantity: Quantity = log_likelihood, name: str = "nats"
    ) -> Estimate | None:
        """The mean of a run over rows, or of its difference from another on the same rows; None if that is not known.

        Args:
            line: Of the run.
            less: Of the other run.
            quantity: What the mean is of.
            name: Of that.
        """
        runs = [line] if less is None else [line, less]

        def difference(rows: Sequence[Tensor]) -> Estimate:
            found = [quantity(run, values) for run, values in zip(runs, rows, strict=True)]
            return of_rows(found[0] if less is None else found[0] - found[1])

        return self.measured(runs, name, difference)

    def measured(
        self, runs: Sequence[Line], name: str, measure: Callable[[Sequence[Tensor]], Estimate]
    ) -> Estimate | None:
        """The same of any measure of what a run says of rows, or of what two do."""
        if any("failed" in run for run in runs):
            return None
        of, less = [label(run["config"]) for run in runs] + [""] * (2 - len(runs))
        key = name, of, less
        rows = [log_likelihoods(run["config"], self.out) for run in runs]
        found = [values for values in rows if values is not None]
        if len(found) == len(runs):
            mean, error = measure(found)
            self.known[key] = {
                "quantity": name, "of": of, "less": less, "mean": finite(mean), "two_standard_errors": finite(error)
            }  # fmt: skip
        if key not in self.known:
            return None
        self.used[key] = self.known[key]
        return Estimate(*(number(self.known[key][name]) for name in ("mean", "two_standard_errors")))

    def write(self) -> None:
        """Keeps what was asked for."""
        write_lines(self.out / NAME, self.used.values())


def number(value: float | None) -> float:
    """The inverse of `finite`, but for which of the numbers it was."""
    return float("nan") if value is None else value


def key_of(kept: Line) -> tuple[Any, ...]:
    """What a mean is known by."""
    return tuple(kept[name] for name in ("quantity", "of", "less"))


def label(config: Config) -> str:
    """Data, model, seed, and a digest of all options, so that a mean is of no other run."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    return f"{name_of(config)} {digest[:12]}"
