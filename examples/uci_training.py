"""How examples/uci.py trains a flow: over several processes, from checkpoints, until time or progress runs out."""

import copy
import datetime
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uci_data
import uci_models
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import flowplug as fp

CHECK_ROWS = 10_000  # at most
START_ROWS = 2_000
NUMBERS = ("step", "checks", "stale", "elapsed", "saved", "best", "best_state", "curve")  # of Training, in checkpoints


class Processes:
    """Those that torchrun started, or this one alone."""

    def __init__(self, device: str) -> None:
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = torch.device(device)
        if self.device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.device.index or 0)))
            torch.cuda.set_device(self.device)
        if self.world > 1:
            # The others wait while the first downloads and prepares.
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            distributed.init_process_group(backend, timeout=datetime.timedelta(hours=3))

    def mean(self, values: Tensor) -> list[float]:
        """The mean over processes of each value."""
        if self.world > 1:
            distributed.all_reduce(values)
        return (values / self.world).tolist()

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401 -- whatever can be pickled
        """The value of each process."""
        values = [value] * self.world
        if self.world > 1:
            distributed.all_gather_object(values, value)
        return values

    def first_alone(self, work: Callable[[], Any]) -> Any:  # noqa: ANN401 -- what work returns
        """Calls ``work`` in the first process, then in the others."""
        if self.rank > 0:
            distributed.barrier()
        outcome = work()
        if self.rank == 0 and self.world > 1:
            distributed.barrier()
        return outcome

    def share(self, rows: Tensor) -> Tensor:
        """Every ``world``-th row, this process's own."""
        return rows[self.rank :: self.world]

    @torch.no_grad()
    def log_likelihoods(self, density: nn.Module, rows: Tensor) -> Tensor:
        """The log-likelihood of each row in nats, in eval mode."""
        density.eval()
        own = torch.cat([defined(density, part) for part in self.share(rows).split(1000)]).cpu()
        values = own.new_empty(len(rows))
        for rank, part in enumerate(self.gather(own)):
            values[rank :: self.world] = part
        return values


def thinned(rows: Tensor, most: int) -> Tensor:
    """Every k-th row, so that there are at most so many: tables may be in the order of time."""
    return rows[:: math.ceil(len(rows) / most)]


def defined(density: nn.Module, x: Tensor) -> Tensor:
    """Log-likelihoods ``(rows,)``, NaN where a layer overflows: processes that wait for each other cannot raise."""
    try:
        return density(x)
    except (fp.NonFiniteError, fp.SingularMatrixError):
        return x.new_full((len(x),), math.nan)


def polyak(average: Tensor, value: Tensor, count: Tensor, *, decay: float) -> Tensor:
    """An exponential average that forgets its start: the decay grows to its final value with the number of updates."""
    return torch.lerp(average, value, (9 / (10 + count)).clamp(min=1 - decay).to(value.dtype))


def seed(number: int) -> None:
    """Seeds torch, and NumPy's global stream, of which normflows draws the lengths of its roulettes."""
    torch.manual_seed(number)
    np.random.seed(number % 2**32)


def run_path(config: dict[str, Any], folder: Path, kind: str) -> Path:
    """Where a run's ``kind`` of file is: its checkpoint, its failure, its test log-likelihoods."""
    return folder / f"{config['data']}-{config['model']}-{config['seed']}.{kind}.pt"


class Training:
    """One run, all that a checkpoint holds, and how it goes on."""

    def __init__(self, config: dict[str, Any], data: uci_data.Table, processes: Processes, folder: Path) -> None:
        self.config, self.data, self.processes = config, data, processes
        self.name = "{data}-{model}-{seed}".format(**config)
        self.checkpoint, self.failure, self.values = (
            run_path(config, folder, kind) for kind in ("checkpoint", "failure", "values")
        )
        self.generator = torch.Generator(processes.device).manual_seed(config["seed"])
        seed(config["seed"])
        self.density = uci_models.make(config["model"], data.train.shape[1], config["parameters"]).to(processes.device)
        self.density.start(thinned(data.train, START_ROWS))  # the same in every process
        self.average = AveragedModel(
            self.density, avg_fn=lambda average, value, count: polyak(average, value, count, decay=config["decay"])
        )
        self.parallel = DistributedDataParallel(self.density) if processes.world > 1 else self.density
        self.optimizer = torch.optim.AdamW(self.density.parameters(), config["lr"], weight_decay=config["weight_decay"])
        if processes.rank > 0:  # probes of its own
            seed(config["seed"] + 1000 * processes.rank)
        self.step, self.checks, self.stale, self.elapsed, self.saved = 0, 0, 0, 0.0, 0.0
        self.best, self.best_state, self.curve = -math.inf, None, []

    def draw(self) -> Tensor:
        """Numbers of the rows of one batch of all processes."""
        size, device = (self.config["batch"],), self.processes.device
        return torch.randint(len(self.data.train), size, generator=self.generator, device=device)

    @property
    def done(self) -> float:
        """The part of the run that lies behind."""
        if self.config["steps"]:
            return self.step / self.config["steps"]
        return self.elapsed / self.config["seconds"]

    def run(self, every: float) -> Iterator[float]:
        """Trains to the end, with a checkpoint ``every`` so many seconds; yields the training loss after every step."""
        start = time.perf_counter() - self.elapsed
        while self.done < 1 and self.stale < self.config["patience"]:
            loss = self.update(start)
            if self.done >= (self.checks + 1) / self.config["checks"]:
                pause = time.perf_counter()  # the budget is of training alone, however dear a validation
                self.validate(loss)
                start += time.perf_counter() - pause
            if self.elapsed - self.saved >= every:
                self.save()
            yield loss

    def update(self, start: float) -> float:
        """One step of training; returns the loss over all processes."""
        warm = min(1.0, (self.step + 1) / self.config["warmup"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.config["lr"] * warm * 0.5 * (1 + math.cos(math.pi * min(self.done, 1.0)))
        x = self.data.train[self.processes.share(self.draw())]
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config["amp"]):
            loss = -defined(self.parallel, x).mean()
        # All processes stop at the same step and keep the same time. A GPU waits for it: little beside a step.
        clock = torch.tensor(time.perf_counter() - start, dtype=torch.float64, device=x.device)
        value, self.elapsed = self.processes.mean(torch.stack([loss.detach().double(), clock]))
        if not math.isfinite(value):
            self.fail(x, f"loss of step {self.step} is {value}")
        self.optimizer.zero_grad()
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.density.parameters(), self.config["clip"]))
        if not math.isfinite(norm):
            self.fail(x, f"norm of the gradient of step {self.step} is {norm}")
        self.optimizer.step()
        self.density.after_update()
        self.average.update_parameters(self.density)
        self.step += 1
        return value

    def validate(self, loss: float) -> None:
        """Keeps the averaged parameters if they are the best so far."""
        self.checks += 1
        self.average.module.after_update()
        rows = thinned(self.data.val, CHECK_ROWS)
        value = float(self.processes.log_likelihoods(self.average.module, rows).mean())
        self.curve.append([self.elapsed, self.step, value, -loss])
        self.stale += 1
        if value > self.best:
            self.best, self.stale = value, 0
            self.best_state = copy.deepcopy(self.average.module.state_dict())

    def fail(self, x: Tensor, what: str) -> None:
        """Saves the batch and the model that were to make a step, and raises FloatingPointError."""
        batch = torch.cat(self.processes.gather(x.cpu()))
        if self.processes.rank == 0:
            with uci_data.replacing(self.failure) as file:
                torch.save({"step": self.step, "batch": batch, "model": self.density.state_dict()}, file)
        raise FloatingPointError(f"{self.name}: the {what}; batch and model: {self.failure}")

    def save(self) -> None:
        """Writes the checkpoint."""
        self.saved = self.elapsed
        cuda = torch.cuda.get_rng_state() if self.processes.device.type == "cuda" else None
        name, keys, *rest = np.random.get_state()
        noise = self.processes.gather((torch.get_rng_state(), cuda, [name, keys.tolist(), *rest]))
        if self.processes.rank == 0:
            objects = {key: getattr(self, key).state_dict() for key in ("density", "average", "optimizer")}
            numbers = {key: getattr(self, key) for key in NUMBERS}
            rows = self.generator.get_state()
            with uci_data.replacing(self.checkpoint) as file:
                torch.save({"config": self.config, "noise": noise, "rows": rows, **objects, **numbers}, file)

    def resume(self) -> None:
        """Goes on from the checkpoint, if there is one.

        Raises:
            ValueError: It is of a run with other options.
        """
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if different := {key for key, value in self.config.items() if state["config"].get(key) != value}:
            raise ValueError(f"{self.checkpoint} is of a run with other {sorted(different)}: use another --out")
        for key in ("density", "average", "optimizer"):
            getattr(self, key).load_state_dict(state[key])
        for key in NUMBERS:
            setattr(self, key, state[key])
        self.generator.set_state(state["rows"])
        cpu, cuda, numpy = state["noise"][self.processes.rank]
        torch.set_rng_state(cpu)
        np.random.set_state(numpy)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
