"""Fits two-dimensional densities with residual flows bounded in different norms, beside a coupling flow of equal size.

Every model gets the same training time. Printed is the mean test log-likelihood in nats; the picture shows the density
and samples of each model beside those of the data.

    python examples/tutorials/toy2d.py                                    # about three minutes on two cores
    python examples/tutorials/toy2d.py --steps 500 --data rings moons
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import zuko

import flowplug as fp
from common.command import among, parse, sound
from common.densities import Density, log_likelihoods, of_transform, of_zuko, size
from common.plane import DATA, histogram, scatter, show
from common.report import markdown
from common.training import Options as Schedule
from common.trial import fit


def residual(norm: fp.InfNorm | fp.Gram | fp.LearnedOrder, blocks: int) -> Density:
    """Residual blocks."""
    parts: list[fp.Transform] = []
    for _ in range(blocks):
        g = fp.LipschitzMLP(2, (256,), bound=0.99, norm=norm)
        parts += [fp.ActNorm(2), fp.ResidualTransform(g)]
    return of_transform(fp.ComposedTransform(*parts), 2)


# A coupling network has one input and two outputs, a block two of each: with a wider layer the parameters agree.
MODELS: dict[str, Callable[[int], Density]] = {
    "residual, 2-norm": lambda blocks: residual(fp.Gram(), blocks),
    "residual, inf-norm": lambda blocks: residual(fp.InfNorm(), blocks),
    "residual, learned orders": lambda blocks: residual(fp.LearnedOrder(), blocks),
    "coupling (RealNVP)": lambda blocks: of_zuko(zuko.flows.RealNVP(2, transforms=blocks, hidden_features=(320,))),
}


@dataclass(frozen=True)
class Options:
    """What to fit, and for how long."""

    data: tuple[str, ...] = tuple(DATA)
    seconds: float = 8  # training time of each model
    steps: int | None = None  # number of training steps instead
    blocks: int = 6
    out: Path = Path("toy2d.png")

    def __post_init__(self) -> None:
        sound(self)
        among(self, "data", DATA)


def main() -> None:
    """Fits, prints and plots."""
    options = parse(Options, description=__doc__)
    torch.manual_seed(0)
    schedule = Schedule(steps=options.steps, seconds=None if options.steps else options.seconds)
    shape = (2 * len(options.data), 1 + len(MODELS))
    figure, panels = plt.subplots(*shape, figsize=(3 * shape[1], 3 * shape[0]), squeeze=False, layout="constrained")
    rows = []
    for column, (name, make) in enumerate(MODELS.items(), start=1):
        scores = []
        for row, data in enumerate(options.data):
            density = make(options.blocks)
            fit(density, DATA[data], schedule, f"{name}, {data}")
            scores.append(float(log_likelihoods(density, DATA[data](10_000)).mean()))
            panel, below = panels[2 * row : 2 * row + 2, column]
            show(panel, density.eval(), below)
            panel.set_title(f"{name}: {scores[-1]:.2f}", fontsize="small")
        rows.append([name, size(density), *(f"{score:.3f}" for score in scores)])
    for row, data in enumerate(options.data):  # last, as what comes first decides the random numbers of the fits
        histogram(panels[2 * row, 0], DATA[data](200_000))
        scatter(panels[2 * row + 1, 0], DATA[data](2000))
        panels[2 * row, 0].set_title(f"data: {data}", fontsize="small")
    print("mean test log-likelihood (nats)\n\n" + markdown(["model", "parameters", *options.data], rows))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=80)
    print(f"\nwrote {options.out}")


if __name__ == "__main__":
    main()
