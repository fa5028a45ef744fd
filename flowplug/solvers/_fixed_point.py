"""The plain fixed-point iteration."""

from dataclasses import dataclass

from torch import Tensor

from flowplug.branch import Branch
from flowplug.solvers._iteration import Memory, check_limits, iterate


@dataclass(frozen=True)
class FixedPoint:
    r"""Solves :math:`x + g(x) = y` by :math:`x \leftarrow y - g(x)`, each sample until its own error is small.

    With :math:`r = y - g(x) - x` the error of the next iterate is at most :math:`|r| L / (1 - L)`, for the certified
    bound L of g and in the norm it holds in; that is what ``tol`` limits. Samples that meet it leave the batch.

    Reference: Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen, "Invertible Residual Networks", ICML 2019, algorithm 1.

    Args:
        tol: The largest error allowed, in the units of x and the norm of the bound, as far as rounding admits.
            ``None``: to rounding, that is until the residual is below rounding of x and y, or stops shrinking within
            64 units of it.
        max_steps: Evaluations of g after which `NotConverged` is raised.

    Raises:
        ValueError: ``tol`` is not positive or ``max_steps`` is below 1.

    Example:
        >>> transform = ResidualTransform(LipschitzMLP(2), solver=FixedPoint(tol=1e-4))
    """

    tol: float | None = None
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        check_limits(self.tol, self.max_steps, "FixedPoint")

    def __call__(self, branch: Branch, y: Tensor) -> Tensor:
        """The solutions ``x: (B, *event)`` for ``y: (B, *event)``.

        Raises:
            NotConverged: The iteration diverged, proved the bound wrong, or reached ``max_steps`` for some samples.
        """
        return iterate("FixedPoint", branch, y, tol=self.tol, max_steps=self.max_steps, memory=Memory())
