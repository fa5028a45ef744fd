"""What the series estimators share: rows that stop one by one, and one vector a probe that carries the gradient."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from flowplug._arguments import require_part
from flowplug._derivatives import with_derivative
from flowplug._errors import CaptureError
from flowplug._noise import Noise
from flowplug._operators import number_of
from flowplug._reading import exporting, refuse_vmap
from flowplug.branch import Branch, Linearization, LipschitzBound
from flowplug.logdet._apart import go_on_apart, solve_apart
from flowplug.logdet._control import Control
from flowplug.logdet._field import Field
from flowplug.logdet._probes import Probes
from flowplug.logdet._recurrence import Draw, Recurrence, Solved
from flowplug.logdet._running import Running
from flowplug.logdet._terms import Terms, certain_terms


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise inner products ``(B,)``."""
    return (a * b).flatten(1).sum(1)


class Problem(NamedTuple):
    """What an estimate is made of, at one point.

    Attributes:
        series: The estimator.
        linear: g at x.
        trace: The exact first term ``(B,)``, or ``None``. Where it is known the series leaves out its own, in the value
            and in u.
        draws: The probes and how long their series are.
    """

    series: Series
    linear: Linearization
    trace: Tensor | None
    draws: Sequence[Draw]

    @classmethod
    def at(cls, series: Series, branch: Branch, x: Tensor, draws: Sequence[Draw]) -> Problem:
        """Evaluates g at ``x: (B, *event)``."""
        linear = branch.linearize(x)
        return cls(series, linear, series.trace(linear), draws)


_ONCE = (
    "the estimate of a log-det is differentiable once, as its u = (I + J)^-T v counts as a constant. For a second "
    "derivative (score matching, Hessians) pass logdet=ExactLogDet(), or PowerSeries(gradient=Autograd()), to the "
    "residual transform, and the same as eval_logdet in eval mode"
)


class Gradient(abc.ABC):
    """How a series estimator gets its gradient; whichever it is, the value is the log-det.

    An estimate is made in two steps: `solve` finds, without a graph, what `attach` then turns into a differentiable
    value. `Recompute` repeats the second step alone.

    Attributes:
        whole: Whether the graph of `attach` holds all that the value depends on, so that it may be differentiated any
            number of times. Else a second derivative is refused.

    Example:
        >>> issubclass(Neumann, Gradient), issubclass(Autograd, Gradient), issubclass(Recompute, Gradient)
        (True, True, True)
    """

    whole: ClassVar[bool] = False

    @property
    def apart(self) -> Gradient | None:
        """What stands for this gradient in a compiled graph, whose `attach` needs no draws, if there is one."""
        return None

    def check(self, series: Series) -> None:
        """Refuses a series that it cannot differentiate.

        Raises:
            TypeError: This is one.
        """
        del series

    @abc.abstractmethod
    def solve(self, problem: Problem) -> list[Solved]:
        """What is found without a graph; may be empty."""

    @abc.abstractmethod
    def attach(self, problem: Problem, solved: Sequence[Solved]) -> Tensor:
        """The mean ``(B,)`` of the estimates of all probes, with its gradient where autograd is on.

        Args:
            problem: What is estimated.
            solved: What `solve` returned for it.
        """

    def __call__(self, series: Series, branch: Branch, x: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        """``g(x): (B, *event)`` and the estimate ``(B,)``."""
        problem = Problem.at(series, branch, x, draws)
        return self.finish(problem, self.solve(problem))

    def finish(self, problem: Problem, solved: Sequence[Solved]) -> tuple[Tensor, Tensor]:
        """The same from what `solve` found."""
        y, ladj = problem.linear.y, self.attach(problem, solved)
        once = not self.whole and torch.is_grad_enabled()
        return y, with_derivative(ladj.detach(), ladj, f"{type(self).__name__}: {_ONCE}", y) if once else ladj


def require_gradient(name: str, gradient: object) -> None:
    """Raises TypeError for what is no gradient, a class among others."""
    if not isinstance(gradient, Gradient):
        raise TypeError(f"{name}(gradient=...) must be a Gradient, such as Neumann() or Recompute(); got {gradient!r}")


@dataclass(frozen=True)
class Series(abc.ABC):
    """A log-det estimator built from vector-Jacobian products of random probes; subclasses say how they make a series.

    Args:
        terms: How many terms are summed, and with what weights.
        probes: The random vectors of the trace estimate.
        gradient: How the estimate is differentiated.
        control: A first term that is known exactly, or ``None``.

    Raises:
        TypeError: ``gradient`` is no gradient, or cannot differentiate this series; or, when called, ``terms`` make a
            schedule that can be iterated over only once.

    Example:
        >>> isinstance(Krylov(), Series), isinstance(PowerSeries(), Series)
        (True, True)
    """

    terms: Terms
    probes: Probes
    gradient: Gradient
    control: Control | None
    number: ClassVar[int]

    def __post_init__(self) -> None:
        name = type(self).__name__
        require_part(name, "terms", self.terms, "schedule", "the terms of a series, such as Truncated(5)")
        require_part(name, "probes", self.probes, "draw", "probes, such as Rademacher(samples=3)")
        require_gradient(name, self.gradient)
        if self.control is not None:
            require_part(name, "control", self.control, "__call__", "a control, such as ExactTrace(), or None")
        self.gradient.check(self)
        object.__setattr__(self, "number", number_of(self))

    def __reduce__(self) -> tuple[type[Series], tuple[object, ...]]:
        """Copies and pickles get a number of their own."""
        return type(self), tuple(getattr(self, field.name) for field in fields(self) if field.init)

    def __call__(self, branch: Branch, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """``g(x): (B, *event)`` and the estimate ``(B,)`` in nats."""
        if torch.compiler.is_compiling():
            return self._compiled(branch, x, noise)
        return self.gradient(self, branch, x, self._draw(branch, x, noise))

    def _compiled(self, branch: Branch, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        if exporting():
            raise CaptureError(
                f"{type(self).__name__} draws random numbers in Python, which an exported program does not have: pass "
                "eval_logdet=ExactLogDet() to the residual transform, and export in eval mode"
            )
        gradient = self.gradient.apart
        certain = None if noise.seed is not None else certain_terms(self.terms, len(x))
        if certain is not None and not certain.group:
            draws = [
                Draw(v, certain.schedule, torch.randperm(len(x), device=x.device)) for v in self.probes.draw(x, None)
            ]
            return (self.gradient if gradient is None else gradient)(self, branch, x, draws)
        if gradient is None or noise.number is None:
            # The graph breaks, and knows how many terms there are; no decorator, which would import the compiler.
            draw = torch.compiler.disable(self._draw)  # type: ignore[no-untyped-call]
            return self.gradient(self, branch, x, draw(branch, x, noise))
        problem = Problem.at(self, branch, x, ())
        if certain is None:
            return gradient.finish(problem, solve_apart(self, branch, x, noise))
        schedule, group = certain
        solved, first = [], problem.trace is None
        for v in self.probes.draw(x, None):
            permutation = torch.randperm(len(x), device=x.device)
            begun = self.solve(problem.linear, Draw(v, schedule, permutation), first=first)
            chosen = permutation[:group]
            solved.append(go_on_apart(self, branch, x, noise, begun, chosen, certain=len(schedule), first=first))
        return gradient.finish(problem, solved)

    def solved(self, branch: Branch, x: Tensor, noise: Noise) -> list[Solved]:
        """What the gradient finds without a graph, for new probes."""
        return self.gradient.solve(Problem.at(self, branch, x, self._draw(branch, x, noise)))

    def _draw(self, branch: Branch, x: Tensor, noise: Noise) -> list[Draw]:
        """The randomness of every probe."""
        refuse_vmap(
            f"{type(self).__name__}(...) draws random numbers, and rows end their series one by one",
            "pass logdet=ExactLogDet(), or call the transform on the whole batch, of any number of dimensions",
        )
        if x.is_cuda and torch.cuda.is_current_stream_capturing() and not self._repeats(len(x), noise):
            raise CaptureError(
                f"{type(self).__name__}(terms={self.terms}) draws lengths and takes shapes from them, which a CUDA "
                "graph would repeat for ever: pass logdet=ExactLogDet(), or compile the step by "
                'torch.compile(mode="reduce-overhead"), which leaves this part out of the graph'
            )
        draws = self._by_content(branch, x, noise) if noise.by_content else self._by_place(branch, x, noise)
        return [self._checked(draw) for draw in draws]

    def _repeats(self, count: int, noise: Noise) -> bool:
        """Whether every pass has the same lengths, and takes its numbers from torch's generator of the device."""
        certain = certain_terms(self.terms, count)
        return noise.seed is None and certain is not None and not certain.group

    def _by_place(self, branch: Branch, x: Tensor, noise: Noise) -> Iterator[Draw]:
        """Numbers for each place in the batch."""
        generator = noise.generator(x.device)
        for v in self.probes.draw(x, generator):
            permutation = torch.randperm(len(x), generator=generator, device=x.device)
            yield Draw(v, self.terms.schedule(len(x), branch, noise.generator("cpu")), permutation)

    def _by_content(self, branch: Branch, x: Tensor, noise: Noise) -> Iterator[Draw]:
        """Numbers for each row, wherever it stands."""
        generator = noise.generator(x.device)
        field = Field(x, generator)
        for v in self.probes.follow(x, field, generator):
            uniform, permutation = (field.angles(1).squeeze(1) / (2 * math.pi)).remainder(1).sort()
            yield Draw(v, self.terms.schedule_rows(uniform.cpu().double(), branch), permutation)

    def _checked(self, draw: Draw) -> Draw:
        if isinstance(draw.schedule, Iterator):
            raise TypeError(
                f"the schedule of {self.terms} is used up by one pass, and Recompute takes two: return a list, not "
                f"a {type(draw.schedule).__name__}"
            )
        return draw

    def check(self, lipschitz: LipschitzBound) -> None:
        """Warns where the estimate may have infinite variance for a branch with this bound."""
        del lipschitz

    def trace(self, linear: Linearization) -> Tensor | None:
        """The exact first term ``(B,)``, if there is a control that knows it."""
        return None if self.control is None else self.control(linear)

    @abc.abstractmethod
    def start(self, v: Tensor) -> Recurrence:
        """The series at its first term, the one with the product :math:`v^T J v`, for probes ``v: (R, *event)``."""

    @torch.no_grad()
    def solve(self, linear: Linearization, draw: Draw, *, first: bool) -> Solved:
        """Sums the series of one probe, with its first term or without."""
        v, running = draw.v, Running(self.start(draw.v), linear, draw.permutation)
        u, pair, waiting, last = torch.zeros_like(v), v.new_zeros(len(v), 2), v.new_zeros(len(v), 2), 0.0
        for k, (weight, count) in enumerate(draw.schedule, 1):
            running.release(count, self.terms.rtol if k > 1 else 0.0)
            rows, state = running.rows, running.state
            if not len(state.u):
                break
            if k > 1:
                pair[rows] += last * running.advance()
            if k > 1 or first:
                u[rows] += weight * state.u
                pair[rows] += weight * state.known
                waiting[rows] = state.waiting
                last = weight
        # The waiting number is what the product with u holds beyond the known part.
        value, product = pair.unbind(1)
        share = torch.where(waiting[:, 1] == 0, 0.0, waiting[:, 0] / waiting[:, 1])
        # Forward-mode derivatives pass through no_grad: u and what is known are constants in these as well.
        return Solved(v, u.detach(), (value - share * product).detach(), share.detach())
