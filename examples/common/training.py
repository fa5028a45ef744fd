"""The training loop of the examples: maximum likelihood, or any loss, by AdamW within a budget of steps or seconds.

No step waits for a GPU: losses stay where they are until they are read, every so many steps and before a validation.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

Batch = Any  # what the loss is called with: rows, or several tensors of these
WARM = 10  # steps' worth of passes before the clock starts, where the loss is compiled


def cosine(done: float) -> float:
    """From 1 to 0 along half a cosine, of the part of the run that is done."""
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def constant(_: float) -> float:
    """1 throughout."""
    return 1.0


@dataclass(frozen=True)
class Options:
    """How to train, and for how long.

    Args:
        steps: The budget in steps.
        seconds: The budget in seconds of ``clock``, instead; validation does not count, nor what a caller does between
            two steps, nor what is compiled before the first.
        clock: `time.perf_counter` for wall time, `time.process_time` for CPU time.
        lr: Largest learning rate.
        weight_decay: Of AdamW; without it that is Adam.
        warmup: Steps until the largest learning rate.
        schedule: Factor of the learning rate, of the part of the budget that is spent, in [0, 1].
        clip: Largest 2-norm of the gradient of all parameters.
        batch: Rows a step.
        checks: Validations in a run.
        every: Steps between two readings of the loss, at most; that of the first is read too.
        compile: Whether the loss is under `torch.compile`, which then compiles it before the clock starts; what it
            compiles later counts.

    Raises:
        ValueError: Not exactly one of ``steps`` and ``seconds`` is given, or a number is not in its range.
    """

    steps: int | None = None
    seconds: float | None = None
    clock: Callable[[], float] = time.perf_counter
    lr: float = 5e-3
    weight_decay: float = 0.0
    warmup: int = 1
    schedule: Callable[[float], float] = cosine
    clip: float = math.inf
    batch: int = 256
    checks: int = 40
    every: int = 100
    compile: bool = False

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise ValueError(f"give either steps or seconds; got steps={self.steps}, seconds={self.seconds}")
        for key in ("steps", "seconds", "lr", "warmup", "clip", "batch", "checks", "every"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise ValueError(f"{key} must be positive; got {value}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative; got {self.weight_decay}")


class Training:
    """One run; iterating trains to its end, and yields the loss after every step, a tensor that nothing waits for.

    Args:
        module: What has the parameters.
        loss: The loss of a batch; of a log-likelihood, ``nll(log_prob)``, with ``compile=True`` where the options say
            so: what starts from data must have done so.
        sample: Draws so many rows: ``rows_of(table)``, or fresh ones from a distribution.
        options: How, and for how long.
        after_step: Called after every step, as the Lipschitz layers of normflows need.
        evaluate: The validation log-likelihood, in nats; called ``options.checks`` times in a run, evenly.
        kept: Whose state of best validation is kept, by default that of ``module``.

    Attributes:
        optimizer: A fused one, as it takes no step by a loss or gradient that is not finite, nor any after that.
        step: Steps so far.
        elapsed: Seconds of ``options.clock`` in these.
        compiling: Seconds of wall time before these, in which the loss was compiled.
        last_loss: The mean loss of the steps that were read last.
        best: The best validation log-likelihood so far, in nats; ``best_state`` is the state there.
        curve: ``[elapsed, step, validation log-likelihood, training log-likelihood]`` of each validation, the last the
            mean since the one before.

    Raises:
        FloatingPointError: Loss or gradient of a step is not finite, as is found when the loss is read; the parameters
            are those before that step.

    Example:
        >>> layer, rows = nn.Linear(2, 1), torch.randn(64, 2)
        >>> run = Training(layer, lambda x: layer(x).square().mean(), rows_of(rows), Options(steps=9, batch=8))
        >>> losses = list(run)
        >>> len(losses), run.step, run.done
        (9, 9, 1.0)
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Batch], Tensor],
        sample: Callable[[int], Batch],
        options: Options,
        *,
        after_step: Callable[[], object] = lambda: None,
        evaluate: Callable[[], float] | None = None,
        kept: nn.Module | None = None,
    ) -> None:
        self.module, self.loss, self.sample, self.options = module, loss, sample, options
        self.after_step, self.evaluate, self.kept = after_step, evaluate, kept or module
        decay = options.weight_decay
        self.optimizer: Any = torch.optim.AdamW(module.parameters(), options.lr, weight_decay=decay, fused=True)
        self.step, self.checks, self.elapsed, self.compiling = 0, 0, 0.0, 0.0
        self.warm, self.loss_sum, self.loss_count, self.last_loss = not options.compile, 0.0, 0, math.nan
        self.unread = list[tuple[Batch, Tensor, Tensor]]()  # batch, loss and norm of the gradient of each step
        self.broken: Tensor | None = None  # 1 after a loss or gradient that is not finite, else 0
        self.best, self.best_state, self.curve = -math.inf, dict[str, Any](), list[list[float]]()

    @property
    def done(self) -> float:
        """The part of the budget that is spent."""
        if self.options.steps is not None:
            return self.step / self.options.steps
        return self.elapsed / (self.options.seconds or math.inf)

    @property
    def over(self) -> bool:
        """Whether the run is at its end."""
        return self.done >= 1

    def __iter__(self) -> Iterator[Tensor]:
        """Trains from here to the end."""
        if not self.warm:
            self.warm_up()
        while not self.over:
            loss = self.advance()
            due = self.evaluate is not None and self.done >= (self.checks + 1) / self.options.checks
            if due or self.over or self.step == 1 or self.step % self.options.every == 0:
                self.read()
            if due:
                self.validate()
            yield loss

    def run(self) -> "Training":
        """Trains from here to the end, in silence."""
        for _ in self:
            pass
        return self

    def warm_up(self) -> None:
        """Has the loss compiled: passes as in training, which change no parameter."""
        start = time.perf_counter()
        for _ in range(WARM):
            torch.autograd.backward(self.loss(self.sample(self.options.batch)))
            self.optimizer.zero_grad()
        self.warm, self.compiling = True, time.perf_counter() - start

    def advance(self) -> Tensor:
        """One step; returns its loss."""
        start, options = self.options.clock(), self.options
        rate = options.lr * min(1.0, (self.step + 1) / options.warmup) * options.schedule(self.done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        x = self.sample(options.batch)
        loss = self.loss(x)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        loss, norm = loss.detach(), nn.utils.clip_grad_norm_(self.module.parameters(), options.clip)
        broken = (loss + norm).isfinite().logical_not().float()
        self.broken = broken if self.broken is None else torch.maximum(self.broken, broken)
        self.optimizer.found_inf = self.broken  # what torch.amp.GradScaler tells a fused optimizer
        self.optimizer.step()
        self.after_step()
        self.unread.append((x, loss, norm))
        self.step += 1
        (self.elapsed,) = self.agreed([self.elapsed + options.clock() - start])
        return loss

    def read(self) -> None:
        """Reads the losses since the last time; that a GPU is waited for counts as time of the steps."""
        if not self.unread:
            return
        start = self.options.clock()
        batches, *columns = zip(*self.unread, strict=True)
        losses, norms = (self.agreed(torch.stack(column).tolist()) for column in columns)
        (self.elapsed,) = self.agreed([self.elapsed + self.options.clock() - start])
        for i, values in enumerate(zip(losses, norms, strict=True)):
            for what, value in zip(("loss", "norm of the gradient"), values, strict=True):
                if not math.isfinite(value):
                    step = self.step - len(batches) + i
                    self.fail(step, batches[i], f"{what} of step {step} is {value}")
            self.loss_sum, self.loss_count = self.loss_sum + values[0], self.loss_count + 1
        self.last_loss = sum(losses) / len(losses)
        self.unread.clear()

    def validate(self) -> None:
        """Evaluates, and keeps the state if it is the best so far."""
        self.checks += 1
        value = self.evaluate() if self.evaluate is not None else math.nan
        self.curve.append([self.elapsed, self.step, value, -self.loss_sum / self.loss_count])
        self.loss_sum, self.loss_count = 0.0, 0
        if value > self.best:
            self.best, self.best_state = value, copy.deepcopy(self.kept.state_dict())

    def restore(self) -> None:
        """Loads the state of best validation.

        Raises:
            FloatingPointError: There is none.
        """
        if not self.best_state:
            raise FloatingPointError("no validation log-likelihood was finite")
        self.kept.load_state_dict(self.best_state)

    def agreed(self, values: Sequence[float]) -> Sequence[float]:
        """What several processes that train together make of their values; here there is one."""
        return values

    def fail(self, step: int, x: Batch, what: str) -> None:
        """Raises FloatingPointError for a step on the batch ``x``."""
        raise FloatingPointError(f"the {what}: try a smaller learning rate")


def nll(log_prob: Callable[[Tensor], Tensor], *, compile: bool = False) -> Callable[[Tensor], Tensor]:
    """The mean negative log-likelihood of a batch, in nats, as a loss: of the function, or of it `compiled`."""
    called = compiled(log_prob) if compile else log_prob
    return lambda x: -called(x).mean()


def compiled(log_prob: Callable[[Tensor], Tensor], *, replay: bool = False) -> Callable[[Tensor], Tensor]:
    """The log-likelihood under `torch.compile`, which forgets the flows that the process trained before.

    On a GPU, ``replay`` has it record CUDA graphs. On a CPU its code is without vectors: with them, that of torch 2.13
    has wrong gradients of neural spline flows.

    Else these would count: torch.compile gives up on a function that it has compiled for eight of them.
    """
    torch.compiler.reset()
    if replay:
        wrapped: Callable[[Tensor], Tensor] = torch.compile(log_prob, mode="reduce-overhead")
    else:
        wrapped = torch.compile(log_prob, options={"cpp.simdlen": 1})
    return wrapped


def rows_of(rows: Tensor) -> Callable[[int], Tensor]:
    """Draws rows of a table ``(rows, features)``, with replacement, from torch's generator."""
    return lambda count: rows[torch.randint(len(rows), (count,), device=rows.device)]


def watched(training: Training, name: str, *, hidden: bool | None = None) -> Iterator[Tensor]:
    """The run under a progress bar, ``hidden`` or, at None, where nobody looks; yields the loss after every step."""
    form = "{desc} {percentage:3.0f}%|{bar:20}| {postfix}"
    with tqdm(total=1.0, desc=f"{name:40}", bar_format=form, disable=hidden) as bar:
        for loss in training:
            bar.n = min(training.done, 1.0)
            best = "" if training.evaluate is None else f", best validation {training.best:.3f} nats"
            bar.set_postfix_str(f"step {training.step}, loss {training.last_loss:.3f}{best}", refresh=False)
            bar.update(0)
            yield loss
