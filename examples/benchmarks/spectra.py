"""Measures the noise of roulettes on the Jacobians of a trained flow, and on some with harder spectra.

For each set of Jacobians and estimator the average number of products, and for value and gradient the standard
deviations that the probe leaves and that the roulette adds. The latter is exact but for the mean over probes: with Y_k
the estimate with k terms, which the code under test computes, the variance is

    sum over k of (1 / P(N > k) - 1 / P(N >= k)) E |Y - Y_k|^2.

The gradient is that with respect to the Jacobian.

    python examples/benchmarks/spectra.py
    python examples/benchmarks/spectra.py --features 128 --data FILE.npz
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import flowplug as fp
from benchmarks.measurements import Measurement, Recorded, run
from benchmarks.models import jacobians, residual_parts, trained_stack
from benchmarks.variance import Linear, Pair, estimate, squared
from common.command import at_least, refusing
from common.tables import EMBEDDED, load

BOUND = 0.95
CERTIFIED = fp.Geometric(1 - BOUND)  # as Certified is for this bound
ESTIMATORS: dict[str, tuple[type[fp.Series], fp.Geometric]] = {
    "Krylov, default": (fp.Krylov, fp.Geometric(0.75, share=0.5)),
    "Krylov, survival 0.15": (fp.Krylov, fp.Geometric(0.85)),
    "Krylov, survival 0.5": (fp.Krylov, fp.Geometric(0.5)),
    "Krylov, survival 0.95": (fp.Krylov, CERTIFIED),
    "PowerSeries, survival 0.95": (fp.PowerSeries, CERTIFIED),
}
EXACT = 2


@dataclass(frozen=True)
class Settings(Recorded):
    """The Jacobians, how many probes to average over, and where to end power series."""

    features: int = 16
    data: str = EMBEDDED  # .npz file with arrays train, val and test, or that table
    steps: int = 1500
    blocks: int = 6
    rows: int = 256
    longest: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, self.blocks, "rows")


def matrices(settings: Settings) -> Iterator[tuple[str, Tensor]]:
    """Jacobians ``(rows, D, D)``: of all blocks of a trained flow, and with random eigenvectors."""
    with refusing():
        table = load(settings.data, dtype=torch.float64)
    flow, x = (
        trained_stack(table.train, settings.blocks, settings.steps),
        table.train[: settings.rows // settings.blocks],
    )
    yield f"of a flow, {table.name}", torch.cat([jacobians(part, own) for part, own in residual_parts(flow, x)])
    basis = torch.linalg.qr(torch.randn(settings.features, settings.features)).Q
    for low, high in ((-0.5, 0.5), (-0.9, BOUND)):
        symmetric = (basis * torch.linspace(low, high, settings.features)) @ basis.T
        yield f"symmetric, {low} to {high}", symmetric.repeat(settings.rows, 1, 1)
    yield f"orthogonal, {BOUND}", BOUND * basis.repeat(settings.rows, 1, 1)


def added(estimates: list[Pair], limit: Pair, length: fp.Length) -> Tensor:
    """The variance that a roulette adds to value and gradient, ``(2,)``, of the estimates with 1, 2, ... terms."""
    inverse = [1 / length.survival(max(0, k - EXACT)) for k in range(1, len(estimates) + 2)]
    steps = zip(estimates, inverse, inverse[1:], strict=False)
    return sum(((after - before) * squared(own, limit) for own, before, after in steps), torch.zeros(2))


def measure(settings: Settings) -> Iterator[Measurement]:
    """Every set of Jacobians and every estimator."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    for name, own in matrices(settings):
        g, eye = Linear(own), torch.eye(own.shape[1])
        limit = estimate(g, fp.Krylov(terms=fp.Truncated(len(eye) + 1), control=None))
        probe = squared(limit, (torch.linalg.slogdet(eye + own).logabsdet, torch.linalg.inv(eye + own).mT)).sqrt()
        estimates = {
            make: [estimate(g, make(terms=fp.Truncated(n), control=None)) for n in range(1, longest + 1)]
            for make, longest in {fp.Krylov: len(eye), fp.PowerSeries: settings.longest}.items()
        }
        for estimator, (make, length) in ESTIMATORS.items():
            roulette = added(estimates[make], limit, length).sqrt()
            figures = {"products": EXACT + length.share * (1 / length.p - 1)}
            for i, of in enumerate(("value", "gradient")):
                figures |= {f"{of}: probe": float(probe[i]), f"{of}: roulette": float(roulette[i])}
            yield "Roulettes and spectra", {"Jacobians": name, "D": len(eye), "estimator": estimator}, figures


if __name__ == "__main__":
    run(measure, Settings, __doc__)
