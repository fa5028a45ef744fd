"""Runs that resume, one after the other, on one source of data after the other."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Generic, Protocol, TypeVar

import torch

from common import resumable
from common.command import refuse, refusing
from common.options import RunOptions
from common.processes import Processes
from common.provenance import provenance
from common.report import read_lines
from common.runs import Config, Line, check, code_of, complete

Data = TypeVar("Data")
Used = TypeVar("Used", contravariant=True)
R = TypeVar("R", bound=resumable.Run)
Made = TypeVar("Made", bound=resumable.Run, covariant=True)

INTERRUPTED = 130  # exit code of what Ctrl-C ends


class Kind(Protocol[Used, Made]):
    """Makes a run, as the constructor of `Run` does, of data."""

    def __call__(
        self, config: Config, data: Used, processes: Processes, folder: Path, /, *, code: str, every: float
    ) -> Made:
        """The run."""


@dataclass(frozen=True)
class Grid(Generic[Data, R]):
    """Which runs there are, what they are judged by, and what is written.

    Args:
        options: How runs are trained, and where results go.
        sources: Where data come from.
        configs: The runs on the data of a source.
        load: The data of a source, on a device.
        kind: Makes a run.
        measured: What a run is judged by.
        report: Writes what there is of the lines into the folder, and returns what is shown at the end.
        facts: What lines say of the data.
        untrained: The outcome of a run without training, saved as that of others; None of one that is trained.
        scripts: Code besides what all share: paths in the repository.
    """

    options: RunOptions
    sources: Sequence[str]
    configs: Callable[[str, Processes], Sequence[Config]]
    load: Callable[[str, torch.device], Data]
    kind: Kind[Data, R]
    measured: Callable[[R], Line]
    report: Callable[[Sequence[Line], Path], str]
    facts: Callable[[Data], Line] = lambda _: {}
    untrained: Callable[[Config, Data], Line | None] = lambda *_: None
    scripts: tuple[str, ...] = ()

    def execute(self) -> None:
        """Trains what is not trained yet, and reports."""
        options, processes = self.options, Processes(self.options.device)
        if options.batch % processes.world:
            refuse(f"--batch {options.batch} must be a multiple of the {processes.world} processes")
        versions, first = provenance(processes.device, *self.scripts), processes.rank == 0
        with refusing():
            grid = {source: self.configs(source, processes) for source in self.sources}
            options.out.mkdir(parents=True, exist_ok=True)
            lines = read_lines(options.out / "results.jsonl")
            runs = [config for configs in grid.values() for config in configs]
            check(lines, runs, options.out, code_of(versions), across=options.across_commits)
        stopped = list[resumable.Run]()

        def reported(lines: Sequence[Line]) -> None:
            self.report(lines, options.out)
            if stopped:  # while it was measured
                raise KeyboardInterrupt

        with interruptible(options.out):
            for source, configs in grid.items():
                with refusing():
                    data = processes.first_alone(partial(self.load, source, processes.device))

                def work(config: Config, data: Data = data) -> Line:
                    facts = {"versions": versions, **self.facts(data)}
                    if (outcome := self.untrained(config, data)) is not None:
                        return facts | outcome
                    code, every = code_of(versions), options.checkpoint
                    run = self.kind(config, data, processes, options.out, code=code, every=every)
                    with stopping(run, alone=processes.world == 1):
                        line = facts | resumable.run(run, self.measured, resume=options.resume)
                    stopped.extend([run] if run.stopped else [])
                    return line

                complete(lines, configs, work, reported, options.out, first=first)
        if first:
            print(f"\n{self.report(lines, options.out)}")
        processes.close()


@contextmanager
def interruptible(out: Path) -> Iterator[None]:
    """Ends the process with a line that says how to go on, where Ctrl-C interrupts it."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\ninterrupted: {out} holds what there is; the same command with --resume goes on")
        raise SystemExit(INTERRUPTED) from None


@contextmanager
def stopping(run: resumable.Run, *, alone: bool) -> Iterator[None]:
    """Has Ctrl-C stop a run after its step, and save it; the second time it interrupts at once.

    So it does the first time where several processes train together, which would save different steps: what goes on is
    the last checkpoint then.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        run.stopped = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop) if alone else signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
