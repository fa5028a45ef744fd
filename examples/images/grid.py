"""Runs of a subcommand on images, and what they have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Generic, TypeVar

import torch

from common import grid
from common.processes import Processes
from common.report import write_lines, write_text
from common.runs import Config, Line
from images.data import Images, load
from images.options import ImageOptions
from images.training import ImageRun

R = TypeVar("R", bound=ImageRun)


@dataclass(frozen=True)
class Grid(Generic[R]):
    """What a subcommand does: its runs, what they are judged by, and what is written.

    Args:
        options: The command line.
        configs: The runs on images, with what they have in common.
        kind: Makes a run.
        measured: What a run is judged by.
        table: The lines as a Markdown table, with the files of the folder.
        summary: Models as a Markdown table, likewise.
        draw: Draws what there is of the lines into the folder.
    """

    options: ImageOptions
    configs: Callable[[Config], Sequence[Config]]
    kind: grid.Kind[Images, R]
    measured: Callable[[R], Line]
    table: Callable[[Sequence[Line], Path], str]
    summary: Callable[[Sequence[Line], Path], str]
    draw: Callable[[Sequence[Line], Path], None]

    def execute(self) -> None:
        """Trains what is not trained yet, and reports."""
        images: Callable[[str, torch.device], Images] = cache(load)

        def configs(source: str, processes: Processes) -> Sequence[Config]:
            return self.configs(self.options.common(images(source, processes.device), processes.world))

        grid.Grid(
            self.options,
            [self.options.data],
            configs=configs,
            load=images,
            kind=self.kind,
            measured=self.measured,
            report=self.report,
            scripts=("examples/images",),
        ).execute()

    def report(self, lines: Sequence[Line], out: Path) -> str:
        """Writes the results so far; returns both tables, and what is written."""
        write_lines(out / "results.jsonl", lines)
        tables = {"table.md": self.table(lines, out), "summary.md": self.summary(lines, out)}
        for name, text in tables.items():
            write_text(out / name, f"{text}\n")
        self.draw(lines, out)
        return "\n\n".join([*tables.values(), f"written to {out}: results.jsonl, table.md, summary.md, pictures"])
