"""What compiled estimates leave to chance, in operators of their own: a graph has fixed shapes, and fixed lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowplug._noise import Noise
from flowplug._operators import define, owner_of, values_of, with_values
from flowplug.branch import Branch
from flowplug.logdet._recurrence import Draw, Solved

Four = tuple[Tensor, Tensor, Tensor, Tensor]


def solve_apart(series: Any, branch: Branch, x: Tensor, noise: Noise) -> list[Solved]:  # noqa: ANN401 -- a circle
    """What ``series.gradient.solve`` finds at ``x: (B, *event)``, by an operator."""
    mix = [] if isinstance(noise.mix, int) else [noise.mix[0], *noise.mix[1]]
    values, samples = values_of(branch.g), series.probes.samples
    context = None if branch.context is None else branch.context.detach()
    parts = _solve(x.detach(), context, noise.seed, values, noise.number, series.number, samples, noise.by_content, mix)
    return [Solved(*(part[i] for part in parts)) for i in range(samples)]


def go_on_apart(
    series: Any,  # noqa: ANN401
    branch: Branch,
    x: Tensor,
    noise: Noise,
    begun: Solved,
    group: Tensor,
    *,
    certain: int,
    first: bool,
) -> Solved:
    """A series after its certain terms, with what chance adds for the rows of a group, by an operator."""
    context = None if branch.context is None else branch.context[group].detach()
    u, known, share = begun.u, begun.known, begun.share
    rows, values = [part[group] for part in (begun.v, u, known, share)], values_of(branch.g)
    found = _go_on(x.detach()[group], context, *rows, values, noise.number, series.number, len(x), certain, first)
    changed = [old.index_copy(0, group, new) for old, new in zip((u, known, share), found, strict=True)]
    return Solved(begun.v, *changed)


def _like_probes(x: Tensor, *given: Any) -> Four:  # noqa: ANN401
    samples = given[5]
    vectors, numbers = x.new_empty((samples, *x.shape)), x.new_empty((samples, len(x)))
    return vectors, torch.empty_like(vectors), numbers, torch.empty_like(numbers)


@define(
    "solve",
    "(Tensor x, Tensor? context, Tensor? seed, Tensor[] values, int owner, int series, int samples, bool by_content, "
    "SymInt[] mix) -> (Tensor, Tensor, Tensor, Tensor)",
    _like_probes,
)
@torch.no_grad()
def _solve(
    x: Tensor,
    context: Tensor | None,
    seed: Tensor | None,
    values: list[Tensor],
    owner: int,
    series: int,
    samples: int,
    by_content: bool,  # noqa: FBT001
    mix: list[int],
) -> Four:
    del samples
    estimator = owner_of(series)
    noise = Noise(seed, mix=(mix[0], tuple(mix[1:])) if mix else 0, by_content=by_content)

    def solve(g: Any) -> list[Solved]:  # noqa: ANN401
        found: list[Solved] = estimator.solved(Branch.of(g, context), x, noise)
        return found

    found = with_values(owner_of(owner).g, values, solve)
    v, u, known, share = (torch.stack(parts) for parts in zip(*found, strict=True))
    return v, u, known, share


def _like_rows(x: Tensor, context: Tensor | None, v: Tensor, u: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
    known, share = given[:2]
    return torch.empty_like(u), torch.empty_like(known), torch.empty_like(share)


@define(
    "go_on",
    "(Tensor x, Tensor? context, Tensor v, Tensor u, Tensor known, Tensor share, Tensor[] values, int owner, "
    "int series, SymInt count, int certain, bool first) -> (Tensor, Tensor, Tensor)",
    _like_rows,
)
@torch.no_grad()
def _go_on(
    x: Tensor,
    context: Tensor | None,
    v: Tensor,
    u: Tensor,
    known: Tensor,
    share: Tensor,
    values: list[Tensor],
    owner: int,
    series: int,
    count: int,
    certain: int,
    first: bool,  # noqa: FBT001
) -> tuple[Tensor, Tensor, Tensor]:
    estimator = owner_of(series)
    schedule = estimator.terms.schedule(count, None, None)
    if len(schedule) == certain:
        return u.clone(), known.clone(), share.clone()

    def solve(g: Any) -> Solved:  # noqa: ANN401
        # The whole series once more, as its state is no tensor: few rows go on, and in few passes.
        linear, rows = Branch.of(g, context).linearize(x), torch.arange(len(x), device=x.device)
        draw = Draw(v, [(weight, len(x)) for weight, _ in schedule], rows)
        found: Solved = estimator.solve(linear, draw, first=first)
        return found

    found = with_values(owner_of(owner).g, values, solve)
    return found.u, found.known, found.share
