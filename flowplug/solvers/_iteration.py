"""The fixed-point iteration of residual maps, sample by sample; what accelerates it is a `Memory` of past steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowplug._arguments import given, require_ints, require_numbers
from flowplug._errors import NotConverged
from flowplug._reading import refuse_non_finite
from flowplug.branch import Branch, LipschitzBound

_ROUNDING = 64  # units of rounding within which a residual may stop to shrink


def event_norm(x: Tensor, order: float | None) -> Tensor:
    """The p-norm of each row's event, ``(B,)`` for ``x: (B, *event)``; the 2-norm if any norm will do."""
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), 2.0 if order is None else order, dim=1)
    return norm


def check_limits(tol: float | None, max_steps: int, name: str) -> None:
    """Refuses values that no solver can work with.

    Raises:
        ValueError: ``tol`` is not positive or ``max_steps`` is below 1.
    """
    require_numbers(name, **given(tol=tol))
    require_ints(name, max_steps=max_steps)
    if tol is not None and not tol > 0:
        raise ValueError(f"{name}(tol=...) must be positive; got {tol}")
    if max_steps < 1:
        raise ValueError(f"{name}(max_steps=...) must be at least 1; got {max_steps}")


class Memory:
    """What a solver remembers of the rows still running; this one nothing, which makes every step a plain one."""

    def remember(self, state: State, residual: Tensor, good: Tensor) -> None:
        """Sees a step to ``state.candidate``, whose residual is given, before it is accepted where it was ``good``."""

    def propose(self, r: Tensor, good: Tensor) -> tuple[Tensor, Tensor]:
        """The next step ``(R, D)`` from the residual r, and whether it is a plain one ``(R,)``."""
        return r, torch.ones_like(good)

    def keep(self, pending: Tensor) -> None:
        """Forgets all rows but those where ``pending: (R,)`` holds."""


class State:
    """The rows still in the batch, before the first evaluation of g all of ``target: (B, D)``.

    Attributes:
        rows: Their numbers ``(R,)``.
        target: y, ``(R, D)``.
        x: The last good point ``(R, D)``.
        r: Its residual :math:`y - g(x) - x`.
        size: The norm ``(R,)`` of r.
        candidate: The point ``(R, D)`` to be tried.
        plain: Whether it is a plain step ``(R,)``, which is certain to be good.
        pending: Whether the row is unfinished ``(R,)``.
    """

    def __init__(self, target: Tensor) -> None:
        self.rows = torch.arange(len(target), device=target.device)
        self.target = self.x = self.candidate = target
        self.r, self.size = torch.zeros_like(target), target.new_full((len(target),), math.inf)
        self.plain = self.pending = torch.ones_like(self.rows, dtype=torch.bool)

    def accept(self, residual: Tensor, tried: Tensor, good: Tensor) -> None:
        """Moves the rows whose step was good to the candidate, with its residual and the norm of that."""
        keep = good.unsqueeze(1)
        self.x, self.r = torch.where(keep, self.candidate, self.x), torch.where(keep, residual, self.r)
        self.size = torch.where(good, tried, self.size)

    def shrink(self) -> None:
        """Drops the rows that are finished, before the next candidate is chosen."""
        for name in ("rows", "target", "x", "r", "size"):
            setattr(self, name, getattr(self, name)[self.pending])
        self.pending = self.pending[self.pending]


class Rule:
    """When a row is finished, and when its iteration has failed.

    Args:
        lipschitz: The bound L of g; its norm measures residuals.
        tol: The largest error; rounding ends the iteration as well, and alone if ``None``.
    """

    def __init__(self, lipschitz: LipschitzBound, tol: float | None) -> None:
        self.contraction, self.order, self.tol = float(lipschitz), lipschitz.domain, tol

    def norm(self, x: Tensor) -> Tensor:
        """In the norm of the bound, ``(R,)``."""
        return event_norm(x, self.order)

    def good(self, state: State, tried: Tensor) -> Tensor:
        """Whether the residual of the candidate, of norm ``tried``, is as small as a plain step would make it."""
        return (state.plain | (tried <= self.contraction * state.size)) & state.pending

    def judge(self, state: State, tried: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows ``(R,)`` are finished and which have failed, after a step from a residual of norm ``previous``."""
        contraction, eps = self.contraction, torch.finfo(state.x.dtype).eps
        scale = self.norm(state.x) + self.norm(state.target)
        # A contraction shrinks the residual at every step until rounding, of x or inside g, takes over.
        stuck = state.plain & (tried >= previous) & (state.size <= _ROUNDING * eps * (scale + 1))
        met = (state.size <= eps * scale) | stuck
        if self.tol is not None:
            met = met | (state.size * contraction <= self.tol * (1 - contraction))
        finite = tried.isfinite() & scale.isfinite() | ~state.pending
        # A plain step that gains less than L promises proves L wrong.
        broken = state.pending & (tried > 1.01 * contraction * previous + _ROUNDING * eps * (scale + 1))
        return met & finite, state.plain & (broken | ~finite)


@torch.no_grad()
def iterate(name: str, branch: Branch, y: Tensor, *, tol: float | None, max_steps: int, memory: Memory) -> Tensor:
    r"""Solves :math:`x + g(x) = y`, each sample until its own error is small.

    A step goes from x, with the residual :math:`r = y - g(x) - x`, to :math:`x + r`, or to where the memory proposes.
    A proposed step whose residual is not below L times the last is taken back and followed by a plain one, so that two
    evaluations at most do what one plain step is certain to do.

    Args:
        name: The solver, for error messages.
        branch: g.
        y: Right-hand sides ``(B, *event)``.
        tol: Largest error; rounding ends the iteration as well, and alone if ``None``.
        max_steps: Largest number of evaluations of g.
        memory: What proposes steps.

    Raises:
        NonFiniteError: The targets hold NaN or infinite values.
        NotConverged: The iteration diverged, proved the bound wrong, or reached ``max_steps`` for some samples.
    """
    lipschitz = branch.lipschitz_bound()
    rule, state, solution = Rule(lipschitz, tol), State(y.flatten(1)), y.clone()
    step, left = 0, len(y)
    while left and step < max_steps:
        step += 1
        residual = state.target - branch(state.candidate.reshape(-1, *y.shape[1:])).flatten(1) - state.candidate
        previous, tried = state.size, rule.norm(residual)
        good = rule.good(state, tried)
        if step > 1:
            memory.remember(state, residual, good)
        state.accept(residual, tried, good)
        finished, failed = rule.judge(state, tried, previous)
        state.pending = state.pending & ~finished
        left, diverged = torch.stack([state.pending.sum(), failed.sum()]).tolist()
        if diverged:
            break
        # Selecting rows costs about one evaluation of g, so it waits until half of them are done.
        if 2 * left <= len(state.rows):
            solution[state.rows] = (state.x + state.r).reshape(-1, *y.shape[1:])
            memory.keep(state.pending)
            branch, good = branch.select(state.pending.nonzero().squeeze(1)), good[state.pending]
            state.shrink()
        move, state.plain = memory.propose(state.r, good)
        state.candidate = state.x + move
    if left:
        refuse_non_finite(name, "input", y)  # which in training on a GPU has been put off
        if not rule.norm(y.flatten(1)).isfinite().all():
            raise NotConverged(
                f"some samples are so large that their norm overflows in {y.dtype}: rescale them, or use torch.float64"
            )
        raise NotConverged(
            f"the fixed point of {left} of {len(y)} samples was not found in {step} steps: worst residual "
            f"{float(state.size[state.pending].max()):.3g}, Lipschitz bound {lipschitz}. If the residual is large, "
            f"the bound of g is wrong; if it is small, raise {name}(max_steps=...) or tol (None: to rounding)"
        )
    return solution
