"""The fixed-point iteration of residual maps, sample by sample, with or without acceleration."""

import math

import torch
from torch import Tensor

from flowplug._branch import Branch
from flowplug._errors import NotConverged
from flowplug.lipschitz._bound import LipschitzBound


def event_norm(x: Tensor, order: float | None) -> Tensor:
    """The p-norm of each row's event, ``(B,)`` for ``x: (B, *event)``; the 2-norm if any norm will do."""
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), 2.0 if order is None else order, dim=1)
    return norm


def check_limits(tol: float | None, max_steps: int, name: str) -> None:
    """Refuses values that no solver can work with.

    Raises:
        ValueError: ``tol`` is not positive or ``max_steps`` is below 1.
    """
    if tol is not None and not tol > 0:
        raise ValueError(f"{name}(tol=...) must be positive; got {tol}")
    if max_steps < 1:
        raise ValueError(f"{name}(max_steps=...) must be at least 1; got {max_steps}")


@torch.no_grad()
def iterate(
    name: str, branch: Branch, y: Tensor, bound: LipschitzBound, *, tol: float | None, max_steps: int, memory: int
) -> Tensor:
    r"""Solves :math:`x + g(x) = y`, each sample until its own error is small.

    A step goes from x, with the residual :math:`r = y - g(x) - x`, to :math:`x + r`; with memory to
    :math:`x + r - \sum_j (q_j^T r) (p_j + q_j)`, where the :math:`q_j` are changes of r, made orthonormal, and the
    :math:`p_j` the changes of x that belong to them. An accelerated step whose residual is not below L times the last
    is taken back and followed by a plain one, so that two evaluations at most do what one plain step is certain to do.

    Args:
        name: The solver, for error messages.
        branch: g.
        y: Right-hand sides ``(B, *event)``.
        bound: The Lipschitz bound L of g; its norm measures residuals.
        tol: Largest error; rounding ends the iteration as well, and alone if ``None``.
        max_steps: Largest number of evaluations of g.
        memory: Number of pairs kept; 0 for the plain iteration.

    Raises:
        NotConverged: The iteration diverged, proved the bound wrong, or reached ``max_steps`` for some samples.
    """
    lipschitz, norm, limits = float(bound), bound.norm, torch.finfo(y.dtype)
    shape, solution, target = y.shape[1:], y.clone(), y.flatten(1)
    rows = torch.arange(len(y), device=y.device)
    x, r, size = target, torch.zeros_like(target), y.new_full((len(y),), math.inf)
    pending = torch.ones(len(y), dtype=torch.bool, device=y.device)
    plain = torch.ones_like(pending)  # the step about to be tried is certain to be good
    pairs: list[tuple[Tensor, Tensor]] = []
    candidate, step, left = x, 0, len(y)
    while left and step < max_steps:
        step += 1
        residual = target - branch(candidate.reshape(-1, *shape)).flatten(1) - candidate
        previous, tried = size, event_norm(residual, norm)
        good = (plain | (tried <= lipschitz * size)) & pending
        # A finished sample that is still in the batch stays as it is.
        keep = good.unsqueeze(1)
        if memory and step > 1:
            pairs = _remember(pairs[max(0, len(pairs) + 1 - memory) :], candidate - x, residual - r, good)
        x, r, size = torch.where(keep, candidate, x), torch.where(keep, residual, r), torch.where(good, tried, size)
        scale = event_norm(x, norm) + event_norm(target, norm)
        # A contraction shrinks the residual at every step until rounding, of x or inside g, takes over.
        stuck = plain & (tried >= previous) & (size <= 64 * limits.eps * (scale + 1))
        met = (size <= limits.eps * scale) | stuck
        if tol is not None:
            met = met | (size * lipschitz <= tol * (1 - lipschitz))
        finite = tried.isfinite() & scale.isfinite() | ~pending
        # A plain step that gains less than L promises proves L wrong.
        broken = pending & (tried > 1.01 * lipschitz * previous + 64 * limits.eps * (scale + 1))
        pending = pending & ~(met & finite)
        left, diverged = torch.stack([pending.sum(), (plain & (broken | ~finite)).sum()]).tolist()
        if diverged:
            break
        # Selecting rows costs about one evaluation of g, so it waits until half of them are done.
        if 2 * left <= len(rows):
            solution[rows] = (x + r).reshape(-1, *shape)
            rows, target, x, r, size = rows[pending], target[pending], x[pending], r[pending], size[pending]
            pairs = [(p[pending], q[pending]) for p, q in pairs]
            branch = branch.rows(pending.nonzero().squeeze(1))
            good, pending = good[pending], pending[pending]
        move, plain = r, ~good if pairs else torch.ones_like(good)
        for p, q in pairs:
            weight = torch.linalg.vecdot(q, r).unsqueeze(1)
            move = move - weight * (p + q)
        candidate = x + move
    if left:
        raise NotConverged(
            f"the fixed point of {left} of {len(y)} samples was not found in {step} steps: worst residual "
            f"{float(size[pending].max()):.3g}, Lipschitz bound {bound}. If the residual is large, the bound of g is "
            f"wrong; if it is small, raise {name}(max_steps=...) or tol (None: to rounding)"
        )
    return solution


def _remember(pairs: list[tuple[Tensor, Tensor]], p: Tensor, q: Tensor, good: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Adds the changes of x and r ``(B, D)`` of the rows whose step was good; the others forget theirs."""
    keep = good.unsqueeze(1)
    pairs = [(a * keep, b * keep) for a, b in pairs]
    p, q = torch.where(keep, p, 0.0), torch.where(keep, q, 0.0)
    for a, b in pairs:
        weight = torch.linalg.vecdot(b, q).unsqueeze(1)
        p, q = torch.addcmul(p, a, weight, value=-1), torch.addcmul(q, b, weight, value=-1)
    size = torch.linalg.vector_norm(q, dim=1, keepdim=True)
    inverse = torch.where(size > torch.finfo(q.dtype).tiny, 1 / size, 0.0)
    return [*pairs, (p * inverse, q * inverse)]
