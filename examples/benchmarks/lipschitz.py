"""Measures how far certified Lipschitz bounds exceed the norms they bound, and what bounded weights cost.

The layers are trained first: dense ones in a flow on UCI Breast Cancer, the others to enlarge their Jacobian.

    python examples/benchmarks/lipschitz.py
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import flowplug as fp
from benchmarks.measurements import Figure, Measurements, Recorded
from benchmarks.models import likelihood_loss
from common.clock import paired
from common.command import parse
from common.tables import load
from common.training import Options as Schedule
from common.training import Training, constant, rows_of

NORMS = (fp.Gram(), fp.SVD(), fp.PowerIteration(), fp.InfNorm(), fp.PathNorm())


@dataclass(frozen=True)
class Options(Recorded):
    """What to measure."""

    widths: tuple[int, ...] = (64, 128, 256, 512)  # of dense layers
    channels: tuple[int, ...] = (8, 16, 32, 64)  # of convolutions
    side: int = 32  # of images
    steps: int = 300  # of training the layers
    rounds: int = 5  # of each timing
    orders: int = 20  # matrices for norms from p to q


def in_a_flow(width: int, steps: int) -> Tensor:
    """The middle weight of a residual block 30 x width x width x 30, trained on UCI Breast Cancer."""
    table = load()
    g = fp.LipschitzMLP(table.features, (width, width), norm=fp.Gram())
    block = [fp.ResidualTransform(g, logdet=fp.Krylov())]
    schedule = Schedule(steps=steps, lr=3e-3, batch=128, schedule=constant)
    Training(g, partial(likelihood_loss, block), rows_of(table.train), schedule).run()
    return g.bounded_weights()[1].detach().double()


def attacked(layer: fp.LipschitzLinear | fp.LipschitzConv2d, x: Tensor, steps: int, lr: float) -> list[Tensor]:
    """Trains a layer to enlarge its Jacobian between two tanh; the weights in use after every step."""
    weights: list[Tensor] = []

    def loss(x: Tensor) -> Tensor:
        moved = x + 0.01 * torch.randn_like(x)
        return -(torch.tanh(layer(x)) - torch.tanh(layer(moved))).square().sum()

    Training(
        layer,
        loss,
        lambda rows: torch.randn(rows, *x.shape[1:]),
        Schedule(steps=steps, lr=lr, batch=len(x), schedule=constant),
        after_step=lambda: weights.append(layer.bounded_weight().detach()),
    ).run()
    return weights


def operator_norm(weight: Tensor, side: int, steps: int = 500) -> float:
    """The 2-norm of a convolution with zero padding on images of this size, by the power method in float64."""
    weight, padding = weight.double(), weight.shape[-1] // 2
    x = torch.randn(1, weight.shape[1], side, side, dtype=torch.float64)
    for _ in range(steps):
        x = x / x.norm()
        y = functional.conv2d(x, weight, padding=padding)
        x = functional.conv_transpose2d(y, weight, padding=padding)
    return float(y.norm())


def shares(call: Callable[[], object], whole: Callable[[], object], rounds: int) -> float:
    """CPU time of a call by that of another, the least of several rounds."""
    times = paired({"call": call, "whole": whole}, rounds, warm=0)
    return min(times["call"]) / min(times["whole"])


def weight_and_gradient(layer: fp.LipschitzConv2d) -> None:
    """Computes the bounded weight, and the gradient through it."""
    layer.bounded_weight().sum().backward()  # type: ignore[no-untyped-call]


def pass_of(layer: nn.Module, x: Tensor) -> None:
    """Forward and backward of a layer."""
    layer(x).sum().backward()


def weights_and_gradients(g: fp.LipschitzMLP | fp.LipschitzCNN) -> Callable[[], object]:
    """Computes the bounded weights of a network, and the gradients through them."""
    leaves = [leaf for name, leaf in g.layers.named_parameters() if name.endswith("weight")]
    seeds = [torch.randn_like(leaf) for leaf in leaves]
    return lambda: torch.autograd.grad(g.bounded_weights(), leaves, seeds)


def training_step(g: nn.Module, x: Tensor) -> Callable[[], object]:
    """Forward and backward of maximum likelihood."""
    block = [fp.ResidualTransform(g, logdet=fp.Krylov())]
    return lambda: likelihood_loss(block, x).backward()  # type: ignore[no-untyped-call]


def dense(options: Options, measurements: Measurements) -> None:
    """Square layers: the certificate over the norm; and the share of a training step of a block 43 x width x width."""
    for width in tqdm(options.widths, desc="dense"):
        weight = in_a_flow(width, options.steps)
        by_norm = float(fp.Gram().measure(weight) / torch.linalg.matrix_norm(weight, 2))
        setting = {"norm": "Gram", "width": width}
        measurements.add("Certificates of dense layers", setting, {"certificate / norm": Figure(by_norm, "ratio")})
        x = torch.randn(512, 43)
        for norm in NORMS:
            g = fp.LipschitzMLP(43, (width, width), norm=norm)
            share = shares(weights_and_gradients(g), training_step(g, x), options.rounds)
            setting = {"D": 43, "rows": len(x), "norm": type(norm).__name__, "width": width}
            figures = {"share of a training step": Figure(100 * share, "%")}
            measurements.add("Cost of bounded dense layers", setting, figures)


def convolutions(options: Options, measurements: Measurements) -> None:
    """3 x 3 layers: the certificate over the norm on images of one size, and the time over that of the layer."""
    for width in tqdm(options.channels, desc="convolutions"):
        shape = (width, options.side, options.side)
        weight = attacked(fp.LipschitzConv2d(width, width, 3), torch.empty(16, *shape), options.steps // 10, 0.01)[-1]
        by_norm = float(fp.Gram().measure(weight.double())) / operator_norm(weight, options.side)
        setting = {"norm": "Gram", "kernel": 3, "side": options.side, "channels": width}
        measurements.add("Certificates of convolutions", setting, {"certificate / norm": Figure(by_norm, "ratio")})
        x, plain = torch.randn(64, *shape, requires_grad=True), nn.Conv2d(width, width, 3, padding=1)
        for norm in (fp.Gram(), fp.PowerIteration()):
            layer = fp.LipschitzConv2d(width, width, 3, norm=norm)
            ratio = shares(partial(weight_and_gradient, layer), partial(pass_of, plain, x), options.rounds)
            figures = {"bounded weight / convolution": Figure(ratio, "ratio of times")}
            setting = {**setting, "norm": type(norm).__name__, "images": len(x)}
            measurements.add("Cost of bounded convolutions", setting, figures)


def networks(options: Options, measurements: Measurements) -> None:
    """The share of bounded weights in the training step of a residual block on images, 3 x 3, 1 x 1, 3 x 3."""
    for channels in tqdm((3, 12), desc="networks"):
        g, x = fp.LipschitzCNN(channels, (64, 64)), torch.randn(16, channels, options.side, options.side)
        share = shares(weights_and_gradients(g), training_step(g, x), options.rounds)
        setting = {"norm": "Gram", "hidden": (64, 64), "side": options.side, "images": len(x), "channels": channels}
        figures = {"share of a training step": Figure(100 * share, "%")}
        measurements.add("Cost of a bounded convolutional network", setting, figures)


def power_iteration(options: Options, measurements: Measurements, width: int = 128, lr: float = 0.05) -> None:
    """The largest norm of a layer over an adversarial training, by tolerance."""
    for tol in tqdm((2e-2, 5e-3, 1e-3), desc="power iteration"):
        layer = fp.LipschitzLinear(width, width, norm=fp.PowerIteration(tol=tol))
        weights = attacked(layer, torch.empty(256, width), options.steps, lr)
        worst = max(float(torch.linalg.matrix_norm(weight, 2)) for weight in weights) / layer.bound - 1
        setting = {"width": width, "steps": options.steps, "lr": lr, "tol": tol}
        measurements.add(
            "Power iteration under attack", setting, {"largest norm / bound - 1": Figure(100 * worst, "%")}
        )


def orders(options: Options, measurements: Measurements, width: int = 64) -> None:
    """Norms from p to q: the certificate over the value of the power method, orders from (1.5, 2.5)."""
    for descending in (False, True):
        for trained in (False, True):
            ratios = []
            for _ in tqdm(range(options.orders), desc="norms from p to q"):
                p, q = sorted((1.5 + torch.rand(2)).tolist(), reverse=descending)
                norm, weight = fp.InducedNorm(p, q), torch.randn(width, width)
                if trained:
                    layer = fp.LipschitzLinear(width, width, norm=norm)
                    weight = attacked(layer, torch.empty(256, width), options.steps, 0.01)[-1]
                ratios.append(float(norm.measure(weight) / norm.estimate(weight)))
            ratio = torch.tensor(ratios)
            kind = f"{'p > q' if descending else 'p <= q'}, {'trained' if trained else 'Gaussian'}"
            figures = {
                "certificate / estimate, median": Figure(float(ratio.median()), "ratio"),
                "certificate / estimate, largest": Figure(float(ratio.max()), "ratio"),
            }
            measurements.add("Norms from p to q", {"width": width, "matrix": kind}, figures)


def main() -> None:
    """Measures everything."""
    options = parse(Options, description=__doc__)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    measurements = Measurements("lipschitz")
    for part in (dense, convolutions, networks, power_iteration, orders):
        part(options, measurements)
    measurements.publish(options.record)


if __name__ == "__main__":
    main()
