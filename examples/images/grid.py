"""Runs of a subcommand, one after the other, and what they have in common."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from common.command import refuse, refusing
from common.processes import Processes
from common.provenance import provenance
from common.report import read_lines, write_lines, write_text
from common.resumable import run
from common.runs import Config, Line, check, code_of, complete
from images.data import Images, load
from images.options import ImageOptions
from images.training import ImageRun

R = TypeVar("R", bound=ImageRun)
Made = TypeVar("Made", bound=ImageRun, covariant=True)


class Kind(Protocol[Made]):
    """Makes a run, as the constructor of `ImageRun` does."""

    def __call__(
        self, config: Config, images: Images, processes: Processes, folder: Path, *, code: str, every: float
    ) -> Made:
        """The run."""


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

    def __init__(
        self,
        options: ImageOptions,
        *,
        configs: Callable[[Config], Sequence[Config]],
        kind: Kind[R],
        measured: Callable[[R], Line],
        table: Callable[[Sequence[Line], Path], str],
        summary: Callable[[Sequence[Line], Path], str],
        draw: Callable[[Sequence[Line], Path], None],
    ) -> None:
        self.options, self.configs, self.kind = options, configs, kind
        self.measured, self.table, self.summary, self.draw = measured, table, summary, draw

    def execute(self) -> None:
        """Trains what is not trained yet, and reports."""
        options, processes = self.options, Processes(self.options.device)
        if options.batch % processes.world:
            refuse(f"--batch {options.batch} must be a multiple of the {processes.world} processes")
        versions = provenance(processes.device, "examples/images")
        with refusing():
            images = load(options.data, processes.device)
            configs = self.configs(options.common(images, processes.world))
            options.out.mkdir(parents=True, exist_ok=True)
            lines = read_lines(options.out / "results.jsonl")
            check(lines, configs, options.out, code_of(versions), across=options.across_commits)

        def work(config: Config) -> Line:
            code, every = code_of(versions), options.checkpoint
            training = self.kind(config, images, processes, options.out, code=code, every=every)
            return {"versions": versions} | run(training, self.measured, resume=options.resume)

        complete(lines, configs, work, self.report, options.out, first=processes.rank == 0)
        if processes.rank == 0:
            self.report(lines)
            tables = f"{self.table(lines, options.out)}\n\n{self.summary(lines, options.out)}"
            print(f"\n{tables}\n\nwritten to {options.out}: results.jsonl, table.md, summary.md, pictures")
        processes.close()

    def report(self, lines: Sequence[Line]) -> None:
        """Writes the results so far."""
        out = self.options.out
        write_lines(out / "results.jsonl", lines)
        write_text(out / "table.md", f"{self.table(lines, out)}\n")
        write_text(out / "summary.md", f"{self.summary(lines, out)}\n")
        self.draw(lines, out)
