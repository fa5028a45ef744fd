"""Measures the variance of log-det estimators on the Jacobians of a trained residual flow.

Prints, for each block, the excess variance of value and gradient over that of the probe (the Hutchinson floor), for the
power series and the Krylov series with the same roulette, 3 products on average, and the ratio; then the same for the
Jacobians scaled to norm 0.95. The excess is exact, not sampled: the estimates of all lengths up to 60 are computed,
with the code under test, and weighted with their probabilities. The gradient is that with respect to the Jacobian.

    python examples/benchmarks/variance.py
    python examples/benchmarks/variance.py --data FILE.npz --steps 1500
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tables import load_table, residual_flow, train
from torch import Generator, Tensor, nn
from tqdm import tqdm

import flowplug as fp

ROULETTE = fp.Roulette(fp.Geometric(0.5), exact=2)


@dataclass(frozen=True)
class Stopped:
    """A roulette that happened to stop after n terms."""

    n: int
    rtol: float = 0.0

    def schedule(
        self, rows: int, bound: Callable[[], float], generator: Generator | None
    ) -> Iterator[tuple[float, int]]:
        """All rows, n times, with the weights of the roulette."""
        for k in range(1, self.n + 1):
            yield 1 / ROULETTE.length.survival(max(0, k - ROULETTE.exact), bound), rows

    def decay(self, bound: float) -> float:
        """Nothing is left to chance."""
        return 1.0


class Linear(nn.Module):
    """g(x) = J x with a matrix of its own for every row, ``(B, D, D)``."""

    def __init__(self, jacobians: Tensor) -> None:
        super().__init__()
        self.jacobians = nn.Parameter(jacobians)

    def forward(self, x: Tensor) -> Tensor:
        """Row by row."""
        return (self.jacobians @ x.unsqueeze(2)).squeeze(2)


@fp.lipschitz_bound.register
def _(module: Linear) -> fp.LipschitzBound:
    return fp.LipschitzBound(0.0)  # what counts here is the spectrum, which is printed


def estimate(g: Linear, make: type, terms: object) -> tuple[Tensor, Tensor]:
    """Value ``(B,)`` and gradient with respect to J ``(B, D, D)``, for probes that do not change from call to call."""
    rows, size = g.jacobians.shape[:2]
    transform = fp.ResidualTransform(g, logdet=make(terms=terms, control=None))
    transform.noise_seed.zero_()
    with fp.fixed_noise(0):
        ladj = transform(torch.zeros(rows, size))[1]
    return ladj.detach(), torch.autograd.grad(ladj.sum(), g.jacobians)[0]


def excess(g: Linear, make: type, longest: int = 60) -> tuple[float, float]:
    """Mean squared deviation, over all lengths, from the limit of the series."""
    limit = estimate(g, fp.Krylov, fp.Truncated(g.jacobians.shape[1] + 1))
    totals = [0.0, 0.0]
    for n in range(ROULETTE.exact, longest):
        chance = 0.5 ** (n - ROULETTE.exact + 1)
        for i, (part, wanted) in enumerate(zip(estimate(g, make, Stopped(n)), limit, strict=True)):
            totals[i] += (
                chance * float((part - wanted).square().flatten(1).sum(1).mean())
                if i
                else chance * float((part - wanted).square().mean())
            )
    return totals[0], totals[1]


def floor(g: Linear) -> tuple[float, float]:
    """The variance that random probes leave if the series is summed exactly."""
    inverse = torch.linalg.inv(torch.eye(g.jacobians.shape[1]) + g.jacobians.detach()).mT
    truth = torch.linalg.slogdet(torch.eye(g.jacobians.shape[1]) + g.jacobians.detach()).logabsdet
    value, gradient = estimate(g, fp.Krylov, fp.Truncated(g.jacobians.shape[1] + 1))
    return float((value - truth).square().mean()), float((gradient - inverse).square().sum((1, 2)).mean())


def report(name: str, jacobians: Tensor) -> None:
    """One line for one set of Jacobians ``(B, D, D)``."""
    g = Linear(jacobians)
    radius = float(torch.linalg.eigvals(jacobians).abs().max())
    norm = float(torch.linalg.matrix_norm(jacobians, 2).max())
    (value, gradient), power, krylov = floor(g), excess(g, fp.PowerSeries), excess(g, fp.Krylov)
    print(f"{name:24} {radius:5.2f} {norm:5.2f}", end="")
    for base, a, b in zip((value, gradient), power, krylov, strict=True):
        print(f"   {base:8.3g} {a:8.2e} {b:8.2e} 1/{a / b:<8.3g}", end="")
    print()


def main() -> None:
    """Trains, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=".npz with arrays train and val; default: UCI Breast Cancer")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--rows", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    rows, _ = load_table(options.data)
    flow = residual_flow(rows.shape[1], options.blocks)
    for _ in tqdm(train(flow, rows, options.steps), total=options.steps, desc="training"):
        pass
    print(f"{'':24} {'max':>5} {'max':>5}   {'value':^38}   {'gradient':^38}")
    names = f"{'floor':>8} {'power':>8} {'Krylov':>8} {'ratio':10}"
    print(f"{'block':24} {'rho':>5} {'|J|_2':>5}   {names}   {names}")
    x, number = rows[: options.rows], 0
    for part in flow.transforms:
        if isinstance(part, fp.ResidualTransform):
            number += 1
            with torch.no_grad():
                jacobians = part.g.branch(None).jacobian(x)[1].contiguous()
            report(f"{number}", jacobians)
            norms = torch.linalg.matrix_norm(jacobians, 2)[:, None, None]
            report(f"{number}, every |J|_2 = 0.95", 0.95 * jacobians / norms)
        with torch.no_grad():
            x = part(x)[0]


if __name__ == "__main__":
    main()
