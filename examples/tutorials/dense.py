"""Dense flows: toy densities as a picture, and density estimation against coupling and autoregressive flows.

Without data, dense flows are fitted to a mixture of Gaussians, two moons and a sine (Gresele et al. 2020, Figure 2).
With a table, or images ``(n, height, width)`` such as MNIST, a dense flow is compared with Real NVP, the same with
dense transforms between its couplings, and a masked autoregressive flow, of equal parameters and trained equally long.
What a training step costs is measured by benchmarks/dense.py.

    python examples/dense.py
    python examples/dense.py --data FILE.npz --seconds 60     # arrays train, val and test
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import compare
import matplotlib.pyplot as plt
import numpy as np
import torch
import toy2d
import zuko
from torch import Tensor, nn
from tqdm import tqdm

import flowplug as fp
import flowplug_zuko


def mixture(rows: int) -> Tensor:
    """Eight Gaussians on a circle."""
    angles = 2 * math.pi * torch.randint(8, (rows,)) / 8
    return 2 * torch.stack([angles.cos(), angles.sin()], 1) + 0.2 * torch.randn(rows, 2)


def sine(rows: int) -> Tensor:
    """A noisy sine."""
    x = 1.5 * torch.randn(rows)
    return torch.stack([x, torch.sin(2 * x) + 0.15 * torch.randn(rows)], 1)


def toys(options: argparse.Namespace) -> None:
    """Fits, prints and draws the toy densities."""
    figure, axes = plt.subplots(2, 3, figsize=(10, 6.8), layout="constrained")
    line = torch.linspace(-4, 4, 200)
    grid = torch.cartesian_prod(line, line)
    for column, make in enumerate((mixture, toy2d.moons, sine)):
        torch.manual_seed(options.seed)
        x, test = make(5000), make(5000)
        flow = flowplug_zuko.DenseFlow(2, transforms=options.layers, activation=fp.SmoothLeakyReLU(0.1))
        optimizer = torch.optim.Adam(flow.parameters(), options.dense_lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
        for _ in tqdm(range(options.steps), desc=make.__name__):
            loss = -flow().log_prob(x[torch.randint(len(x), (500,))]).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            flow.eval()
            density = flow().log_prob(grid).exp().reshape(200, 200)
            print(f"{make.__name__}: test log-likelihood {float(flow().log_prob(test).mean()):.3f} nats")
        axes[0, column].scatter(*test.T, s=1, color="k")
        axes[0, column].set(xlim=(-4, 4), ylim=(-4, 4), title=f"{make.__name__}: data", xticks=[], yticks=[])
        axes[1, column].imshow(density.T, origin="lower", extent=(-4, 4, -4, 4))
        axes[1, column].set(title="dense flow", xticks=[], yticks=[])
    figure.savefig(options.out / "toys.png", dpi=120)
    print(f"wrote {options.out / 'toys.png'}")


def load(path: Path, device: str) -> tuple[compare.Data, float]:
    """Reads a table, or images as logits of dequantised pixels; standardised either way.

    Returns:
        The data, and the nats to subtract from log-likelihoods of images for those of the logits.
    """
    with np.load(path, allow_pickle=False) as file:
        if file["train"].ndim == 2:
            return compare.load_data(path, device), 0.0
        generator = torch.Generator().manual_seed(0)
        parts = {part: torch.tensor(file[part]).flatten(1) for part in ("train", "val", "test")}
    # As Papamakarios et al. (2017): uniform noise, and logits of alpha + (1 - 2 alpha) x for alpha = 1e-6.
    parts = {
        part: torch.logit(1e-6 + (1 - 2e-6) * (x + torch.rand(x.shape, generator=generator)) / 256)
        for part, x in parts.items()
    }
    mean, std = parts["train"].mean(0), parts["train"].std(0)
    parts = {part: ((x - mean) / std).to(device) for part, x in parts.items()}
    return compare.Data(path.stem, **parts), float(std.log().sum())


def size(flow: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in flow.parameters())


def nearest(make: Callable[[int], nn.Module], wanted: int) -> nn.Module:
    """The flow ``make(hidden)`` of about so many parameters, by bisection of the width."""
    low, high = 1, 4096
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(make(middle)) <= wanted else (low, middle)
    return make(low)


def models(features: int, options: argparse.Namespace, rows: Tensor) -> dict[str, Callable[[], nn.Module]]:
    """The zuko flows to compare, the first of which sets the number of parameters; ``rows`` to start from."""

    def started(flow: nn.Module) -> nn.Module:
        if options.whiten:
            next(part for part in flow.modules() if isinstance(part, fp.DenseTransform)).whiten(rows)
        return flow

    def dense() -> nn.Module:
        activation = fp.SmoothLeakyReLU(options.slope)
        return flowplug_zuko.DenseFlow(features, transforms=options.layers, activation=activation, value=fp.Deferred())

    def real_nvp(hidden: int, *, mixing: bool) -> nn.Module:
        flow = zuko.flows.NICE(features, transforms=5, hidden_features=(hidden, hidden), randmask=True)
        if mixing:
            # No more matrices than half the parameters allow.
            for i in range(min(5, max(1, wanted // (2 * features**2)))):
                layer = flowplug_zuko.DenseTransform(features, activation=None, value=fp.Deferred())
                flow.transform.transforms.insert(2 * i, layer)
        return flow

    def maf(hidden: int) -> nn.Module:
        return zuko.flows.MAF(features, transforms=5, hidden_features=(hidden, hidden), randperm=True)

    wanted = size(dense())
    return {
        "dense flow": lambda: started(dense()),
        "zuko: Real NVP": lambda: nearest(lambda hidden: real_nvp(hidden, mixing=False), wanted),
        "zuko: Real NVP + dense": lambda: started(nearest(lambda hidden: real_nvp(hidden, mixing=True), wanted)),
        "zuko: MAF": lambda: nearest(maf, wanted),
    }


def density(options: argparse.Namespace) -> None:
    """Trains, tests and prints the models."""
    data, offset = load(options.data, options.device)
    print(f"{data.name}: {len(data.train)} training rows; {options.seconds:g} s a model on {options.device}")
    results = []
    makers = models(data.train.shape[1], options, data.train[:10_000].cpu())
    for name in options.only or makers:
        torch.manual_seed(options.seed)
        flow = makers[name]().to(options.device)

        def round_trip(x: Tensor, flow: nn.Module = flow) -> Tensor:
            return flow().transform.inv(flow().transform(x))

        model = compare.Model(
            name, flow, lambda x, f=flow: f().log_prob(x), lambda n, f=flow: f().sample((n,)), round_trip
        )
        lr = options.dense_lr if name == "dense flow" else options.lr
        settings = argparse.Namespace(seconds=options.seconds, batch=options.batch, lr=lr)
        result, _ = compare.evaluate(model, data, compare.train(model, data, settings))
        result.test_log_likelihood -= offset
        results.append(result)
    report = compare.table(results)
    print(f"\n{report}")
    path = options.out / f"{data.name}.md"
    path.write_text(f"{data.name}, {options.seconds:g} s a model on {options.device}\n\n{report}\n")
    print(f"wrote {path}")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=".npz file with arrays train, val and test")
    parser.add_argument("--layers", type=int, help="dense transforms (default 25 for toys, 10 for tables)")
    parser.add_argument("--whiten", action="store_true", help="start the first matrix by whitening the data, tables")
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="models to train, tables (default all)")
    parser.add_argument("--slope", type=float, default=0.3, help="of the leaky ReLU, tables (default %(default)s)")
    parser.add_argument("--steps", type=int, default=3000, help="training steps, toys (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="training time of each model, tables")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ..., tables (default %(default)s)")
    parser.add_argument("--dense-lr", type=float, help="largest learning rate of dense flows (5e-2 toys, 2e-2 tables)")
    parser.add_argument("--lr", type=float, default=5e-3, help="that of the other models (default %(default)s)")
    parser.add_argument("--batch", type=int, default=256, help="rows per step, tables (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of each model (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("dense_out"), help="folder written to (default %(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    toy = options.data is None
    options.layers = options.layers or (25 if toy else 10)
    options.dense_lr = options.dense_lr or (5e-2 if toy else 2e-2)
    if toy:
        toys(options)
    else:
        density(options)


if __name__ == "__main__":
    main()
