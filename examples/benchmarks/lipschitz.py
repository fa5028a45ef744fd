"""Measures how far certified Lipschitz bounds exceed the norms they bound, and what bounded weights cost.

The layers are trained first: dense ones in a flow on UCI Breast Cancer, the others to enlarge their Jacobian.

    python examples/benchmarks/lipschitz.py
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import flowplug as fp
from benchmarks.measurements import Figure, Measurement, Recorded, run
from benchmarks.models import likelihood_loss
from common.clock import paired
from common.command import at_least
from common.tables import load
from common.training import Options, Training, constant, rows_of

NORMS = (fp.Gram(), fp.SVD(), fp.PowerIteration(), fp.InfNorm(), fp.PathNorm())


@dataclass(frozen=True)
class Settings(Recorded):
    """What to measure."""

    widths: tuple[int, ...] = (64, 128, 256, 512)  # of dense layers
    channels: tuple[int, ...] = (8, 16, 32, 64)  # of convolutions
    side: int = 32  # of images
    steps: int = 300  # of training the layers
    rounds: int = 5  # of each timing
    orders: int = 20  # matrices for norms from p to q

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 10, "steps")  # convolutions train for a tenth


def in_a_flow(width: int, steps: int) -> Tensor:
    """The middle weight of a residual block 30 x width x width x 30, trained on UCI Breast Cancer."""
    table = load()
    g = fp.LipschitzMLP(table.features, (width, width), norm=fp.Gram())
    block = [fp.ResidualTransform(g, logdet=fp.Krylov())]
    options = Options(steps=steps, lr=3e-3, batch=128, schedule=constant)
    Training(g, partial(likelihood_loss, block), rows_of(table.train), options).run()
    return g.bounded_weights()[1].detach().double()


def attacked(
    layer: fp.LipschitzLinear | fp.LipschitzConv2d, rows: int, *shape: int, steps: int, lr: float = 0.01
) -> list[Tensor]:
    """Trains a layer to enlarge its Jacobian between two tanh, by rows of this shape; the weights after every step."""
    weights: list[Tensor] = []

    def loss(x: Tensor) -> Tensor:
        moved = x + 0.01 * torch.randn_like(x)
        return -(torch.tanh(layer(x)) - torch.tanh(layer(moved))).square().sum()

    def keep() -> None:
        weights.append(layer.bounded_weight().detach())

    options = Options(steps=steps, lr=lr, batch=rows, schedule=constant)
    Training(layer, loss, lambda count: torch.randn(count, *shape), options, after_step=keep).run()
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


def share(call: Callable[[], object], whole: Callable[[], object], rounds: int) -> float:
    """CPU time of a call by that of another, the least of several rounds."""
    times = paired({"call": call, "whole": whole}, rounds, warm=0)
    return min(times["call"]) / min(times["whole"])


def differentiate(make: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Forward and backward."""
    torch.autograd.backward(make(*inputs).sum())


def share_of_step(g: fp.LipschitzMLP | fp.LipschitzCNN, x: Tensor, rounds: int) -> Figure:
    """The bounded weights of a network with the gradients through them, in a training step of its residual block."""
    leaves = [leaf for name, leaf in g.layers.named_parameters() if name.endswith("weight")]
    seeds = [torch.randn_like(leaf) for leaf in leaves]
    block = [fp.ResidualTransform(g, logdet=fp.Krylov())]
    part = share(
        lambda: torch.autograd.grad(g.bounded_weights(), leaves, seeds),
        lambda: torch.autograd.backward(likelihood_loss(block, x)),
        rounds,
    )
    return Figure(100 * part, "%")


def dense(settings: Settings) -> Iterator[Measurement]:
    """Square layers: the certificate over the norm; and the share of a training step of a block 43 x width x width."""
    for width in tqdm(settings.widths, desc="dense"):
        weight = in_a_flow(width, settings.steps)
        by_norm = Figure(float(fp.Gram().measure(weight) / torch.linalg.matrix_norm(weight, 2)), "ratio")
        yield "Certificates of dense layers", {"norm": "Gram", "width": width}, {"certificate / norm": by_norm}
        x = torch.randn(512, 43)
        for norm in NORMS:
            figure = share_of_step(fp.LipschitzMLP(43, (width, width), norm=norm), x, settings.rounds)
            setting = {"D": 43, "rows": len(x), "norm": type(norm).__name__, "width": width}
            yield "Cost of bounded dense layers", setting, {"share of a training step": figure}


def convolutions(settings: Settings) -> Iterator[Measurement]:
    """3 x 3 layers: the certificate over the norm on images of one size, and the time over that of the layer."""
    for width in tqdm(settings.channels, desc="convolutions"):
        shape, setting = (width, settings.side, settings.side), {"kernel": 3, "side": settings.side, "channels": width}
        weight = attacked(fp.LipschitzConv2d(width, width, 3), 16, *shape, steps=settings.steps // 10)[-1].double()
        by_norm = Figure(float(fp.Gram().measure(weight)) / operator_norm(weight, settings.side), "ratio")
        yield "Certificates of convolutions", {"norm": "Gram", **setting}, {"certificate / norm": by_norm}
        x, plain = torch.randn(64, *shape, requires_grad=True), nn.Conv2d(width, width, 3, padding=1)
        for norm in (fp.Gram(), fp.PowerIteration()):
            layer = fp.LipschitzConv2d(width, width, 3, norm=norm)
            ratio = share(
                partial(differentiate, layer.bounded_weight), partial(differentiate, plain, x), settings.rounds
            )
            figures = {"bounded weight / convolution": Figure(ratio, "ratio of times")}
            yield "Cost of bounded convolutions", {"norm": type(norm).__name__, **setting, "images": len(x)}, figures


def networks(settings: Settings) -> Iterator[Measurement]:
    """The share of bounded weights in the training step of a residual block on images, 3 x 3, 1 x 1, 3 x 3."""
    for channels in tqdm((3, 12), desc="networks"):
        x = torch.randn(16, channels, settings.side, settings.side)
        figure = share_of_step(fp.LipschitzCNN(channels, (64, 64)), x, settings.rounds)
        setting = {"norm": "Gram", "hidden": (64, 64), "side": settings.side, "images": len(x), "channels": channels}
        yield "Cost of a bounded convolutional network", setting, {"share of a training step": figure}


def power_iteration(settings: Settings, width: int = 128, lr: float = 0.05) -> Iterator[Measurement]:
    """The largest norm of a layer over an adversarial training, by tolerance."""
    for tol in tqdm((2e-2, 5e-3, 1e-3), desc="power iteration"):
        layer = fp.LipschitzLinear(width, width, norm=fp.PowerIteration(tol=tol))
        weights = torch.stack(attacked(layer, 256, width, steps=settings.steps, lr=lr))
        excess = Figure(100 * (float(torch.linalg.matrix_norm(weights, 2).max()) / layer.bound - 1), "%")
        setting = {"width": width, "steps": settings.steps, "lr": lr, "tol": tol}
        yield "Power iteration under attack", setting, {"largest norm / bound - 1": excess}


def orders(settings: Settings, width: int = 64) -> Iterator[Measurement]:
    """Norms from p to q: the certificate over the value of the power method, orders from (1.5, 2.5)."""
    for kind in ("p <= q, Gaussian", "p <= q, trained", "p > q, Gaussian", "p > q, trained"):
        ratios = []
        for _ in tqdm(range(settings.orders), desc=kind):
            p, q = sorted((1.5 + torch.rand(2)).tolist(), reverse="p > q" in kind)
            norm, weight = fp.InducedNorm(p, q), torch.randn(width, width)
            if "trained" in kind:
                layer = fp.LipschitzLinear(width, width, norm=norm)
                weight = attacked(layer, 256, width, steps=settings.steps)[-1]
            ratios.append(float(norm.measure(weight) / norm.estimate(weight)))
        figures = {
            "certificate / estimate, median": Figure(statistics.median(ratios), "ratio"),
            "certificate / estimate, largest": Figure(max(ratios), "ratio"),
        }
        yield "Norms from p to q", {"width": width, "matrix": kind}, figures


def measure(settings: Settings) -> Iterator[Measurement]:
    """Everything."""
    for part in (dense, convolutions, networks, power_iteration, orders):
        yield from part(settings)


if __name__ == "__main__":
    run(measure, Settings, __doc__)
