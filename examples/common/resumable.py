"""What benchmarks add to the training loop: several processes, checkpoints, Polyak averages, an end to patience."""

import abc
import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from common import memory, training
from common.densities import Model
from common.processes import Defined, Processes
from common.report import finite, replacing
from common.runs import Config, Line, name_of, run_path
from common.training import watched

OBJECTS = ("density", "averaged", "optimizer")  # of Run, in checkpoints
NUMBERS = (
    "step", "checks", "stale", "elapsed", "saved", "loss_sum", "loss_count", "best", "best_state", "curve",
)  # fmt: skip
R = TypeVar("R", bound="Run")


class Run(training.Training, abc.ABC):
    """One run, all that a checkpoint holds, and how it goes on; a subclass says what is trained on what.

    Attributes:
        start_seconds: Of the budget, what `made` spent before the first step.
        stopped: Whether somebody asked the run to save itself after the next step, and to end by a KeyboardInterrupt.

    Args:
        config: What the run depends on.
        processes: Those that train together.
        folder: Where its files go.
        code: What trains, for checkpoints.
        every: Seconds between these.

    Raises:
        FloatingPointError: Loss or gradient is not finite; batch and model are saved.
    """

    start_seconds: float = 0.0
    stopped: bool = False

    def __init__(
        self, config: Config, processes: Processes, folder: Path, *, code: str = "", every: float = math.inf
    ) -> None:
        self.config, self.processes, self.code, self.every = config, processes, code, every
        self.name = name_of(config)
        self.checkpoint, self.failure, self.values = (
            run_path(config, folder, kind) for kind in ("checkpoint", "failure", "values")
        )
        self.generator = torch.Generator(processes.device).manual_seed(config["seed"])
        seed(config["seed"])
        self.density = self.made()
        self.averaged = copy.deepcopy(self.density)
        called: Callable[..., Tensor] = self.density
        if "compile" in config:
            called = training.compiled(self.density, replay="replay" in config)
        self.parallel: nn.Module = Defined(cast("nn.Module", called))
        if processes.world > 1:
            self.parallel = DistributedDataParallel(self.parallel)
        if processes.rank > 0:  # probes of its own
            seed(config["seed"] + 1000 * processes.rank)
        super().__init__(
            self.density,
            self.batch_loss,
            self.batch,
            options(config),
            after_step=self.follow,
            evaluate=self.validation,
            kept=self.averaged,
        )
        # All processes go on from the same time, or one of them might be over while others wait for it.
        (self.start_seconds,) = self.agreed([self.start_seconds])
        self.stale, self.saved, self.elapsed = 0, 0.0, self.start_seconds

    def __iter__(self) -> Iterator[Tensor]:
        """Trains from here to the end, and saves what it needs to go on."""
        for loss in super().__iter__():
            if self.stopped or self.elapsed - self.saved >= self.every:
                self.save()
            if self.stopped:
                raise KeyboardInterrupt
            yield loss

    @property
    def over(self) -> bool:
        """Whether the budget is spent, or patience, once there has been a step: a start may take longer than all."""
        return self.step > 0 and (super().over or self.stale >= self.config["patience"])

    @abc.abstractmethod
    def made(self) -> Model:
        """The model, started from data, on the device; the same in every process."""

    @abc.abstractmethod
    def batch(self, size: int) -> tuple[Tensor, ...]:
        """What the model is called with in a step: this process's share of one batch of all."""

    @property
    @abc.abstractmethod
    def validated(self) -> tuple[Tensor, ...]:
        """What the model is called with in a validation."""

    def batch_loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """The mean negative log-likelihood, NaN where a layer overflows."""
        with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.config["amp"]):
            loss: Tensor = -self.parallel(*batch).mean()
        return loss

    def agreed(self, values: Sequence[float]) -> Sequence[float]:
        """The mean over processes, which so stop at the same step and keep the same time."""
        return self.processes.mean(values)

    def warm_up(self) -> None:
        """Has the loss compiled, and leaves the noise as it was: a run that goes on compiles again."""
        noise, rows = noise_state(self.processes.device), self.generator.get_state()
        super().warm_up()
        set_noise_state(noise)
        self.generator.set_state(rows)

    def follow(self) -> None:
        """Keeps normflows' bounds, and the average.

        That forgets its start: the decay grows to its final value with the steps. `torch.optim.swa_utils.AveragedModel`
        would wait for a GPU in each.
        """
        self.density.after_step()
        decay = min(self.config["decay"], (1 + self.step) / (10 + self.step)) if self.step else 0.0
        update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        update(list(self.averaged.parameters()), list(self.density.parameters()), self.step)

    @torch.no_grad()
    def validation(self) -> float:
        """The mean log-likelihood of validation rows under the averaged parameters, in nats."""
        for buffer, value in zip(self.averaged.buffers(), self.density.buffers(), strict=True):
            buffer.copy_(value)
        self.averaged.after_step()
        return float(self.processes.log_likelihoods(self.averaged, *self.validated).mean())

    def validate(self) -> None:
        """Evaluates, and counts the validations since the best."""
        before = self.best
        super().validate()
        self.stale = 0 if self.best > before else self.stale + 1

    def fail(self, step: int, x: tuple[Tensor, ...], what: str) -> NoReturn:
        """Saves the batch and the model that were to make a step, and raises FloatingPointError."""
        shares = self.processes.gather([part.cpu() for part in x])
        batch = [torch.cat(parts) for parts in zip(*shares, strict=True)]
        if self.processes.rank == 0:
            with replacing(self.failure) as file:
                torch.save({"step": step, "batch": batch, "model": self.density.state_dict()}, file)
        raise FloatingPointError(f"{self.name}: the {what}; batch and model: {self.failure}")

    def tested(self, *rows: Tensor, by: nn.Module | None = None) -> Tensor:
        """The log-likelihood of each of these rows under what was best, in nats; saved, too.

        Args:
            rows: What the model is called with.
            by: What is called instead, a module around the average.

        Raises:
            FloatingPointError: Nothing was best, or what is called instead overflows.
        """
        self.restore()
        values = self.processes.log_likelihoods(self.averaged if by is None else by, *rows)
        if by is not None and values.dim() == 1:
            raise FloatingPointError(f"{self.name}: a layer overflows on test rows")
        if self.processes.rank == 0:
            with replacing(self.values) as file:
                torch.save({"config": self.config, "values": values}, file)
        return values

    @property
    def spent(self) -> Line:
        """What a line of results says of the time that the run took, and of how it went."""
        compiling = {"compile_seconds": self.compiling} if self.options.compile else {}
        return {
            "validation": finite(self.best),
            "steps": self.step,
            "seconds": self.elapsed,
            "start_seconds": self.start_seconds,
            **compiling,
            "steps_per_second": self.step / self.elapsed,
            "peak_memory_mib": memory.peak(self.processes.device),
            "curve": [[finite(round(value, 4)) for value in point] for point in self.curve],
        }

    def save(self) -> None:
        """Writes the checkpoint."""
        self.read()
        self.saved = self.elapsed
        noise = self.processes.gather(noise_state(self.processes.device))
        if self.processes.rank == 0:
            objects = {key: getattr(self, key).state_dict() for key in OBJECTS}
            numbers = {key: getattr(self, key) for key in NUMBERS}
            known = {"config": self.config, "code": self.code, "noise": noise, "rows": self.generator.get_state()}
            with replacing(self.checkpoint) as file:
                torch.save({**known, **objects, **numbers}, file)

    def resume(self) -> None:
        """Goes on from the checkpoint, if there is one: `common.runs.check` says whether it may."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if missing := {*OBJECTS, *NUMBERS} - set(state):
            raise ValueError(f"{self.checkpoint} lacks {sorted(missing)}, as other code made it: use another --out")
        for key in OBJECTS:
            getattr(self, key).load_state_dict(state[key])
        for key in NUMBERS:
            setattr(self, key, state[key])
        self.generator.set_state(state["rows"])
        set_noise_state(state["noise"][self.processes.rank])


class TableRun(Run):
    """A run whose batches are rows of a table, drawn with replacement."""

    @property
    @abc.abstractmethod
    def rows(self) -> int:
        """The number of rows to train on."""

    @abc.abstractmethod
    def told(self, rows: Tensor) -> tuple[Tensor, ...]:
        """What the model is called with, of the rows of these numbers."""

    def batch(self, size: int) -> tuple[Tensor, ...]:
        """This process's share of one batch of all."""
        rows = torch.randint(self.rows, (size,), generator=self.generator, device=self.processes.device)
        return self.told(self.processes.share(rows))


def options(config: Config) -> training.Options:
    """Those of the common loop."""
    same = {key: config[key] for key in ("lr", "weight_decay", "warmup", "clip", "batch", "checks")}
    budget = {"steps": config["steps"]} if config["steps"] else {"seconds": config["seconds"]}
    clock = time.process_time if "cpu" in config else time.perf_counter
    return training.Options(**budget, **same, clock=clock, compile="compile" in config)


def thinned(rows: Tensor, most: int) -> Tensor:
    """Every k-th row, so that there are at most so many: tables may be in the order of time."""
    return rows[:: math.ceil(len(rows) / most)]


def seed(number: int) -> None:
    """Seeds torch, and NumPy's global stream, of which normflows draws the lengths of its roulettes."""
    torch.manual_seed(number)
    np.random.seed(number % 2**32)


def noise_state(device: torch.device) -> tuple[Any, ...]:
    """Where the streams of `seed` stand, as torch can save it."""
    name, keys, *rest = cast("tuple[Any, ...]", np.random.get_state())
    cuda = torch.cuda.get_rng_state() if device.type == "cuda" else None
    return torch.get_rng_state(), cuda, [name, keys.tolist(), *rest]


def set_noise_state(state: tuple[Any, ...]) -> None:
    """Goes on from there."""
    cpu, cuda, numpy = state
    torch.set_rng_state(cpu)
    np.random.set_state(numpy)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)


def run(training: R, measured: Callable[[R], Line], *, resume: bool) -> Line:
    """Trains, with a progress bar, and measures; the outcome is what a line of results says of it."""
    processes = training.processes
    memory.reset(processes.device)
    if resume:
        training.resume()
    try:
        for _ in watched(training, training.name, hidden=True if processes.rank else None):
            pass
        return measured(training)
    except FloatingPointError as error:
        return {"failed": str(error)}
