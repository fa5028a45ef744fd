"""Measures the variance of log-det estimators on the Jacobians of a trained residual flow.

For each block, the excess variance of value and gradient over that of the probe (the Hutchinson floor), for the power
series and the Krylov series with the same roulette, 3 products on average, and the ratio; then the same for the
Jacobians scaled to norm 0.95. The excess is exact, not sampled: the estimates of all lengths up to 60 are computed,
with the code under test, and weighted with their probabilities. The gradient is that with respect to the Jacobian.

    python examples/benchmarks/variance.py
    python examples/benchmarks/variance.py --data FILE.npz --steps 1500
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

import flowplug as fp
from benchmarks.measurements import Measurement, Recorded, run
from benchmarks.models import jacobians, residual_parts, trained_stack
from common.command import refusing
from common.tables import EMBEDDED, load

ROULETTE = fp.Roulette(fp.Geometric(0.5), exact=2)
Pair = tuple[Tensor, Tensor]  # of a value and a gradient


@dataclass(frozen=True)
class Settings(Recorded):
    """What to train and where to measure."""

    data: str = EMBEDDED  # .npz file with arrays train, val and test, or that table
    steps: int = 1500
    blocks: int = 6
    rows: int = 256


@dataclass(frozen=True)
class Stopped:
    """A roulette that happened to stop after n terms."""

    n: int
    rtol: ClassVar[float] = 0.0

    def schedule(self, count: int, branch: fp.Branch, generator: Generator | None) -> list[tuple[float, int]]:
        """All rows, n times, with the weights of the roulette."""
        survivals = (ROULETTE.length.survival(max(0, k - ROULETTE.exact), branch) for k in range(1, self.n + 1))
        return [(1 / survival, count) for survival in survivals]

    def schedule_rows(self, uniform: Tensor, branch: fp.Branch) -> list[tuple[float, int]]:
        """As `schedule`."""
        return self.schedule(len(uniform), branch, None)

    def decay(self, bound: float) -> float:
        """Nothing is left to chance."""
        return 1.0


class Linear(nn.Module):
    """g(x) = J x with a matrix of its own for every row, ``(B, D, D)``."""

    def __init__(self, matrices: Tensor) -> None:
        super().__init__()
        self.matrices = nn.Parameter(matrices)

    def forward(self, x: Tensor) -> Tensor:
        """Row by row."""
        return (self.matrices @ x.unsqueeze(2)).squeeze(2)


@fp.lipschitz_bound.register
def _(module: Linear) -> fp.LipschitzBound:
    return fp.LipschitzBound(0.0, limit=0.0)  # what counts here is the spectrum, which is measured


def estimate(g: Linear, logdet: fp.LogDet) -> Pair:
    """Value ``(B,)`` and gradient with respect to J ``(B, D, D)``, for probes that do not change from call to call."""
    transform = fp.ResidualTransform(g, logdet=logdet)
    transform.noise_seed.zero_()
    with fp.fixed_noise(0):
        ladj = transform(torch.zeros(g.matrices.shape[:2]))[1]
    return ladj.detach(), torch.autograd.grad(ladj.sum(), g.matrices)[0]


def squared(one: Pair, other: Pair) -> Tensor:
    """The mean squared deviations of value and gradient, ``(2,)``."""
    return torch.stack([(a - b).square().reshape(len(a), -1).sum(1).mean() for a, b in zip(one, other, strict=True)])


def variances(matrices: Tensor, longest: int = 60) -> dict[str, Tensor]:
    """Of value and gradient, ``(2,)``: what the probes leave, the excess of both series, and the ratio of these."""
    g, eye = Linear(matrices), torch.eye(matrices.shape[1])
    limit = estimate(g, fp.Krylov(terms=fp.Truncated(len(eye) + 1), control=None))
    truth = torch.linalg.slogdet(eye + matrices).logabsdet, torch.linalg.inv(eye + matrices).mT
    found = {"floor": squared(limit, truth)}
    for make in (fp.PowerSeries, fp.Krylov):
        found[make.__name__] = torch.zeros(2)
        for n in range(ROULETTE.exact, longest):
            own = estimate(g, make(terms=Stopped(n), control=None))
            found[make.__name__] += 0.5 ** (n - ROULETTE.exact + 1) * squared(own, limit)
    return found | {"PowerSeries / Krylov": found["PowerSeries"] / found["Krylov"]}


def measure(settings: Settings) -> Iterator[Measurement]:
    """Every block of a trained flow."""
    torch.set_default_dtype(torch.float64)
    with refusing():
        table = load(settings.data, dtype=torch.float64)
    flow = trained_stack(table.train, settings.blocks, settings.steps)
    for number, (part, x) in enumerate(residual_parts(flow, table.train[: settings.rows]), 1):
        own = jacobians(part, x)
        norms = torch.linalg.matrix_norm(own, 2)
        for kind, matrices in {"trained": own, "of norm 0.95": 0.95 * own / norms[:, None, None]}.items():
            figures = {
                "spectral radius": float(torch.linalg.eigvals(matrices).abs().max()),
                "norm": float(torch.linalg.matrix_norm(matrices, 2).max()),
            }
            pairs = variances(matrices)
            for i, of in enumerate(("value", "gradient")):
                figures |= {f"{of}: {name}": float(pair[i]) for name, pair in pairs.items()}
            setting = {"data": table.name, "block": number, "Jacobians": kind}
            yield "Variance of log-det estimators", setting, figures


if __name__ == "__main__":
    run(measure, Settings, __doc__)
