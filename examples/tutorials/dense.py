"""Dense flows: toy densities as a picture, and density estimation against coupling and autoregressive flows.

Without data, dense flows are fitted to a mixture of Gaussians, two moons and a sine (Gresele et al. 2020, Figure 2).
With a table, or images ``(n, height, width)`` such as MNIST, a dense flow is compared with Real NVP, the same with
dense transforms between its couplings, and a masked autoregressive flow, of equal parameters and trained equally long.
What a training step costs is measured by benchmarks/dense.py.

    python examples/tutorials/dense.py
    python examples/tutorials/dense.py --data FILE.npz --seconds 60     # arrays train, val and test
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import zuko
from torch import Tensor

import flowplug as fp
import flowplug_zuko
from common.command import among, fractions, parse, refusing, sound
from common.densities import Density, nearest, of_zuko, size
from common.plane import mixture, moons, scatter, show, sine
from common.report import write_text
from common.tables import PARTS, Table, standardised, stored
from common.training import Options as Schedule
from common.training import rows_of
from common.trial import fit, mean_log_likelihood, table, trial

NAMES = ("dense flow", "zuko: Real NVP", "zuko: Real NVP + dense", "zuko: MAF")


@dataclass(frozen=True)
class Options:
    """What to fit; the toys or, with data, a table."""

    data: Path | None = None  # .npz file with arrays train, val and test
    layers: int | None = None  # dense transforms (25 for toys, 10 for tables)
    whiten: bool = False  # start the first matrix by whitening the data, tables
    only: tuple[str, ...] = NAMES  # models to train, tables
    slope: float = 0.3  # of the leaky ReLU, tables
    steps: int = 3000  # training steps, toys
    seconds: float = 60.0  # training time of each model, tables
    device: str = "cpu"  # cpu, cuda, ..., tables
    dense_lr: float | None = None  # largest learning rate of dense flows (5e-2 toys, 2e-2 tables)
    lr: float = 5e-3  # that of the other models
    batch: int = 256  # rows per step, tables
    seed: int = 0  # of each model
    out: Path = Path("dense_out")  # folder written to

    def __post_init__(self) -> None:
        sound(self)
        fractions(self, "slope")
        among(self, "only", NAMES)


def toys(options: Options) -> None:
    """Fits, prints and draws the toy densities."""
    figure, axes = plt.subplots(2, 3, figsize=(10, 6.8), layout="constrained")
    schedule = Schedule(steps=options.steps, lr=options.dense_lr or 5e-2, clip=5.0, batch=500)
    for column, make in enumerate((mixture, moons, sine)):
        torch.manual_seed(options.seed)
        x, test = make(5000), make(5000)
        activation = fp.SmoothLeakyReLU(0.1)
        density = of_zuko(flowplug_zuko.DenseFlow(2, transforms=options.layers or 25, activation=activation))
        fit(density, rows_of(x), schedule, make.__name__)
        print(f"{make.__name__}: test log-likelihood {mean_log_likelihood(density, test):.3f} nats")
        scatter(axes[0, column], x)
        show(axes[1, column], density.eval())
        axes[0, column].set_title(f"{make.__name__}: data")
        axes[1, column].set_title("dense flow")
    figure.savefig(options.out / "toys.png", dpi=120)
    print(f"wrote {options.out / 'toys.png'}")


def load(path: Path, device: str) -> tuple[Table, float]:
    """Reads a table, or images as logits of dequantised pixels; standardised either way.

    Returns:
        The data, and the nats to subtract from log-likelihoods of images for those of the logits.
    """
    arrays = stored(path, PARTS, "an .npz file with arrays train, val and test, of tables or of images")
    if any(array.dtype.kind not in "biuf" or array.ndim < 3 for array in arrays.values()):
        return standardised(path, arrays, device), 0.0
    generator = torch.Generator().manual_seed(0)
    parts = {part: torch.tensor(array).flatten(1) for part, array in arrays.items()}
    # As Papamakarios et al. (2017): uniform noise, and logits of alpha + (1 - 2 alpha) x for alpha = 1e-6.
    logits = {
        part: torch.logit(1e-6 + (1 - 2e-6) * (x + torch.rand(x.shape, generator=generator)) / 256).numpy()
        for part, x in parts.items()
    }
    return standardised(path, logits, device), float(np.log(logits["train"].std(0)).sum())


def models(features: int, options: Options, rows: Tensor) -> dict[str, Callable[[], Density]]:
    """The flows to compare, the first of which sets the number of parameters; ``rows`` to start from."""

    def started(density: Density) -> Density:
        if options.whiten:
            next(part for part in density.modules() if isinstance(part, fp.DenseTransform)).whiten(rows)
        return density

    def dense() -> Density:
        activation, layers = fp.SmoothLeakyReLU(options.slope), options.layers or 10
        flow = flowplug_zuko.DenseFlow(features, transforms=layers, activation=activation, value=fp.Deferred())
        return of_zuko(flow)

    def real_nvp(hidden: int, *, mixing: bool) -> Density:
        flow = zuko.flows.NICE(features, transforms=5, hidden_features=(hidden, hidden), randmask=True)
        if mixing:
            # No more matrices than half the parameters allow.
            for i in range(min(5, max(1, wanted // (2 * features**2)))):
                layer = flowplug_zuko.DenseTransform(features, activation=None, value=fp.Deferred())
                flow.transform.transforms.insert(2 * i, layer)
        return of_zuko(flow)

    def maf(hidden: int) -> Density:
        return of_zuko(zuko.flows.MAF(features, transforms=5, hidden_features=(hidden, hidden), randperm=True))

    wanted = size(dense())
    makers: tuple[Callable[[], Density], ...] = (
        lambda: started(dense()),
        lambda: nearest(partial(real_nvp, mixing=False), wanted),
        lambda: started(nearest(partial(real_nvp, mixing=True), wanted)),
        lambda: nearest(maf, wanted),
    )
    return dict(zip(NAMES, makers, strict=True))


def compare(options: Options, path: Path) -> None:
    """Trains, tests and prints the models."""
    with refusing():
        data, offset = load(path, options.device)
    head = f"{data.name}, {options.seconds:g} s a model on {options.device}"
    print(f"{head}: {len(data.train)} training rows")
    makers, lines = models(data.features, options, data.train[:10_000].cpu()), []
    for name in options.only:
        torch.manual_seed(options.seed)
        density = makers[name]().to(options.device)
        lr = options.dense_lr or 2e-2 if name == "dense flow" else options.lr
        schedule = Schedule(seconds=options.seconds, lr=lr, batch=options.batch, warmup=100, clip=100.0)
        lines.append(trial(name, density, data, schedule, offset=offset)[0])
    report = table(lines)
    write_text(options.out / f"{data.name}.md", f"{head}\n\n{report}\n")
    print(f"\n{report}\n\nwrote {options.out / data.name}.md")


def main() -> None:
    """Fits the toys, or compares on a table."""
    options = parse(Options, description=__doc__)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.data is None:
        toys(options)
    else:
        compare(options, options.data)


if __name__ == "__main__":
    main()
