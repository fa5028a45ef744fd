"""The fixed-point iteration, accelerated."""

from dataclasses import dataclass

from torch import Tensor

from flowplug._branch import Branch
from flowplug.lipschitz._bound import LipschitzBound
from flowplug.solvers._iteration import check_limits, iterate


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
        if self.memory < 1:
            raise ValueError(f"Anderson(memory=...) must be at least 1; got {self.memory}")

    def __call__(self, branch: Branch, y: Tensor, bound: LipschitzBound) -> Tensor:
        """The solutions ``x: (B, *event)`` for ``y: (B, *event)``.

        Raises:
            NotConverged: The iteration diverged, proved the bound wrong, or reached ``max_steps`` for some samples.
        """
        return iterate("Anderson", branch, y, bound, tol=self.tol, max_steps=self.max_steps, memory=self.memory)
