"""The fixed-point iteration, accelerated."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowplug._arguments import require_ints
from flowplug.branch import Branch
from flowplug.solvers._iteration import Memory, State, check_limits, iterate


@dataclass(frozen=True)
class Anderson:
    r"""Solves :math:`x + g(x) = y` with far fewer evaluations of g, and the guarantees of `FixedPoint`.

    .. math:: x \leftarrow x + r - \sum_{j=1}^{m} (q_j^T r) (p_j + q_j), \qquad r = y - g(x) - x

    The :math:`q_j` are the last changes of the residual, made orthonormal, and the :math:`p_j` the changes of x that
    belong to them: the step is the one that would make the residual smallest if g were linear. Tolerance and error
    bound are those of `FixedPoint`. A step that gains less than a plain one is certain to gain is taken back, so the
    iteration converges wherever the plain one does, with twice the evaluations at worst.

    Reference: Walker, Ni, "Anderson Acceleration for Fixed-Point Iterations", SIAM J. Numer. Anal. 49, 2011, eq. (2.1),
    with the least-squares problem solved by orthogonal changes.

    Args:
        memory: Number m of changes kept, at least 1.
        tol: The largest error allowed, in the units of x and the norm of the bound; ``None``: to rounding.
        max_steps: Evaluations of g after which `NotConverged` is raised.

    Raises:
        ValueError: ``memory`` or ``max_steps`` is below 1, or ``tol`` is not positive.

    Example:
        >>> transform = ResidualTransform(LipschitzMLP(2), solver=Anderson(memory=3))
    """

    memory: int = 5
    tol: float | None = None
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        check_limits(self.tol, self.max_steps, "Anderson")
        require_ints("Anderson", memory=self.memory)
        if self.memory < 1:
            raise ValueError(f"Anderson(memory=...) must be at least 1; got {self.memory}")

    def __call__(self, branch: Branch, y: Tensor) -> Tensor:
        """The solutions ``x: (B, *event)`` for ``y: (B, *event)``.

        Raises:
            NotConverged: The iteration diverged, proved the bound wrong, or reached ``max_steps`` for some samples.
        """
        memory = _Changes(self.memory)
        return iterate("Anderson", branch, y, tol=self.tol, max_steps=self.max_steps, memory=memory)


class _Changes(Memory):
    r"""The last changes :math:`q_j` of r, orthonormal, with the changes :math:`p_j` of x that belong to them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def remember(self, state: State, residual: Tensor, good: Tensor) -> None:
        """Adds the changes of x and r to those of rows whose step was good; the others forget theirs."""
        keep, dx, dr = good.unsqueeze(1), state.candidate - state.x, residual - state.r
        pairs = self._pairs[max(0, len(self._pairs) + 1 - self._most) :]
        pairs = [(p * keep, q * keep) for p, q in pairs]
        dx, dr = torch.where(keep, dx, 0.0), torch.where(keep, dr, 0.0)
        for p, q in pairs:
            weight = torch.linalg.vecdot(q, dr).unsqueeze(1)
            dx, dr = torch.addcmul(dx, p, weight, value=-1), torch.addcmul(dr, q, weight, value=-1)
        size = torch.linalg.vector_norm(dr, dim=1, keepdim=True)
        inverse = torch.where(size > torch.finfo(dr.dtype).tiny, 1 / size, 0.0)
        self._pairs = [*pairs, (dx * inverse, dr * inverse)]

    def propose(self, r: Tensor, good: Tensor) -> tuple[Tensor, Tensor]:
        """The step that would make r smallest if g were linear; a plain one after a step that was taken back."""
        move = r
        for p, q in self._pairs:
            move = move - torch.linalg.vecdot(q, r).unsqueeze(1) * (p + q)
        return move, ~good if self._pairs else torch.ones_like(good)

    def keep(self, pending: Tensor) -> None:
        """Forgets the other rows."""
        self._pairs = [(p[pending], q[pending]) for p, q in self._pairs]
