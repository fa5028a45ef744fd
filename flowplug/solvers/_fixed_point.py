"""The plain fixed-point iteration, sample by sample."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowplug._branch import Branch
from flowplug._errors import NotConverged
from flowplug.lipschitz._bound import LipschitzBound


def event_norm(x: Tensor, order: float | None) -> Tensor:
    """The p-norm of each row's event, ``(B,)`` for ``x: (B, *event)``; the 2-norm if any norm will do."""
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), 2.0 if order is None else order, dim=1)
    return norm


@dataclass(frozen=True)
class FixedPoint:
    r"""Solves :math:`x + g(x) = y` by :math:`x \leftarrow y - g(x)`, each sample until its own error is small.

    With :math:`r = y - g(x) - x` the error of the next iterate is at most :math:`|r| L / (1 - L)`, for the certified
    bound L of g and in the norm it holds in; that is what ``tol`` limits. Samples that meet it leave the batch.

    Args:
        tol: The largest error allowed, in the units of x and the norm of the bound. ``None``: to rounding, that is
            until the residual is below rounding of x and y, or stops shrinking within 64 units of it.
        max_steps: Evaluations of g after which `NotConverged` is raised.

    Raises:
        ValueError: ``tol`` is not positive or ``max_steps`` is below 1.

    Example:
        >>> transform = ResidualTransform(LipschitzMLP(2), solver=FixedPoint(tol=1e-4))
    """

    tol: float | None = None
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        if self.tol is not None and not self.tol > 0:
            raise ValueError(f"FixedPoint(tol=...) must be positive; got {self.tol}")
        if self.max_steps < 1:
            raise ValueError(f"FixedPoint(max_steps=...) must be at least 1; got {self.max_steps}")

    @torch.no_grad()
    def __call__(self, branch: Branch, y: Tensor, bound: LipschitzBound) -> Tensor:
        """The solutions ``x: (B, *event)`` for ``y: (B, *event)``.

        Raises:
            NotConverged: The iteration diverged or reached ``max_steps`` for some samples.
        """
        lipschitz, norm = float(bound), bound.norm
        epsilon = torch.finfo(y.dtype).eps
        solution = y.clone()
        rows = torch.arange(len(y), device=y.device)
        x, target = y, y
        size = y.new_full((len(y),), math.inf)
        pending = torch.ones(len(y), dtype=torch.bool, device=y.device)
        step = 0
        while len(rows) and step < self.max_steps:
            step += 1
            residual = target - branch(x) - x
            # A finished sample that is still in the batch stays as it is.
            x = torch.where(_like(pending, x), x + residual, x)
            previous, size = size, event_norm(residual, norm)
            scale = event_norm(x, norm) + event_norm(target, norm)
            if self.tol is None:
                # A contraction shrinks the residual at every step until rounding, of x or inside g, takes over.
                met = (size <= epsilon * scale) | ((size >= previous) & (size <= 64 * epsilon * (scale + 1)))
            else:
                met = size * lipschitz <= self.tol * (1 - lipschitz)
            finite = size.isfinite() & scale.isfinite()
            pending = pending & ~(met & finite)
            left, diverged = torch.stack([pending.sum(), (~finite).sum()]).tolist()
            if diverged:
                break
            # Selecting rows costs about one evaluation of g, so it waits until half of them are done.
            if 2 * left <= len(rows):
                solution[rows] = x
                rows, x, target, size = rows[pending], x[pending], target[pending], size[pending]
                branch = branch.rows(pending.nonzero().squeeze(1))
                pending = pending[pending]
        if len(rows):
            raise NotConverged(
                f"the fixed point of {int(pending.sum())} of {len(y)} samples was not found in {step} steps: worst "
                f"residual {float(size[pending].max()):.3g}, Lipschitz bound {bound}. If the residual is large, the "
                "bound of g is wrong; if it is small, raise FixedPoint(max_steps=...) or tol (None: to rounding)"
            )
        return solution


def _like(mask: Tensor, x: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (x.dim() - 1))
