"""What every benchmark that trains flows can be told."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from common.command import OptionError, not_negative, positive, usable, writable
from common.runs import Config

SHARED = ("parameters", "batch", "lr", "weight_decay", "warmup", "clip", "decay", "checks", "patience", "amp", "device")


@dataclass(frozen=True)
class RunOptions:
    """The part of a command line that says how runs are trained; comments are its help."""

    SECONDS: ClassVar[float] = 600.0  # without --seconds and --steps

    seeds: tuple[int, ...] = (0,)  # a run of each model from each
    seconds: float | None = None  # wall time of each run, where --steps are not given
    cpu: bool = False  # --seconds of CPU time, which other work on the machine does not spend
    steps: int | None = None  # length of each run in steps, instead of --seconds
    parameters: int = 100_000  # of each model, about
    batch: int = 512  # rows per step, of all processes
    lr: float = 2e-3  # largest learning rate
    weight_decay: float = 0.0  # of AdamW
    warmup: int = 100  # steps until the largest learning rate
    clip: float = 100.0  # largest norm of the gradient
    decay: float = 0.999  # of the Polyak average; 0 for none
    checks: int = 40  # validations in a run
    patience: int = 20  # validations without progress that end a run
    amp: bool = False  # train in mixed precision, bfloat16
    device: str = "cpu"  # cpu, cuda, ...
    out: Path = Path("out")  # folder written to
    checkpoint: float = 300.0  # seconds of training between checkpoints
    resume: bool = False  # skip the runs in --out, and go on where a killed one was last saved
    across_commits: bool = False  # with --resume, also accept runs that other code made

    def __post_init__(self) -> None:
        usable(self)
        positive(self, "seconds", "steps", "parameters", "batch", "lr", "warmup", "clip", "checks", "patience")
        if self.seconds is not None and self.steps is not None:
            raise OptionError("--steps is not allowed with --seconds: give one of them")
        if not 0 <= self.decay < 1:
            raise OptionError(f"--decay must be in [0, 1); got {self.decay}")
        not_negative(self, "weight_decay", "checkpoint")
        writable(self)
        begun = [path for form in ("results.jsonl", "*.checkpoint.pt") for path in self.out.glob(form)]
        if begun and not self.resume:
            raise OptionError(f"{self.out} holds results or checkpoints: pass --resume to go on, or another --out")

    def shared(self, processes: int) -> Config:
        """What the configurations of all runs have in common."""
        # Before --steps had no value of its own, it was 0: so it is in the results of then.
        budget = {"seconds": self.seconds or self.SECONDS, "steps": self.steps or 0}
        shared = budget | {key: getattr(self, key) for key in SHARED} | {"processes": processes}
        return shared | {"cpu": True} if self.cpu else shared  # else there is none, as in results of before
