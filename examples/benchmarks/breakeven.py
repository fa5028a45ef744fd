"""Times `ExactLogDet` against the stochastic default over the dimension of the events.

A training step is forward and backward of one residual block, an evaluation its forward pass in eval mode, both on rows
of the given batch. The ratio is of CPU times (on a GPU, of the times until it is done), exact over estimate: on CPUs
the default changes from exact to stochastic where it passes 1.

    python examples/benchmarks/breakeven.py
    python examples/benchmarks/breakeven.py --device cuda --batch 4096
    python examples/benchmarks/breakeven.py --hidden 128 128 128
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

import flowplug as fp
from benchmarks.measurements import Measurements, Recorded, hardware, median, over
from benchmarks.models import likelihood_loss
from common.clock import paired, seconds
from common.command import parse

ESTIMATES = {"training": fp.Krylov(), "evaluation": fp.Krylov(terms=fp.Roulette(fp.Geometric(0.5), exact=8))}


@dataclass(frozen=True)
class Options(Recorded):
    """How to measure."""

    features: tuple[int, ...] = (2, 6, 10, 21, 43, 63, 128, 784)
    hidden: tuple[int, ...] = (128,)
    batch: int = 256
    rounds: int = 9
    device: str = "cpu"


def step(transform: fp.ResidualTransform, x: Tensor) -> None:
    """One step in train mode, one evaluation in eval mode."""
    if transform.training:
        likelihood_loss([transform], x).backward()  # type: ignore[no-untyped-call]
    else:
        with torch.no_grad():
            transform(x)


def main() -> None:
    """Measures every dimension in both modes."""
    options = parse(Options, description=__doc__)
    torch.set_num_threads(1)
    torch.set_default_device(options.device)
    torch.manual_seed(0)
    measurements = Measurements("breakeven")
    network = f"LipschitzMLP(D, {options.hidden})"
    for features in tqdm(options.features):
        x, g = torch.randn(options.batch, features), fp.LipschitzMLP(features, options.hidden)
        for mode, estimate in ESTIMATES.items():
            training = mode == "training"
            steps = {
                name: partial(step, fp.ResidualTransform(g, logdet=logdet, eval_logdet=logdet).train(training), x)
                for name, logdet in (("exact", fp.ExactLogDet()), ("estimate", estimate))
            }
            times = paired(steps, options.rounds, clock=partial(seconds, options.device))
            setting: dict[str, object] = {"mode": mode, "device": hardware(options.device), "network": network}
            setting |= {"rows": options.batch, "D": features}
            figures = {"exact / estimate": over(times["exact"], times["estimate"])}
            measurements.add("Exact or estimated log-dets", setting, figures)
            by_row = [1e6 * time / options.batch for time in times["exact"]]
            measurements.add("Exact log-dets by the row", setting, {"exact": median(by_row, "µs a row")})
    measurements.publish(options.record, options.device)


if __name__ == "__main__":
    main()
