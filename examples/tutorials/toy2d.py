"""Fits two-dimensional densities with residual flows bounded in different norms, beside a coupling flow of equal size.

Every model gets the same training time. Printed is the mean test log-likelihood in nats; the picture shows, for each
model, its density and samples.

    python examples/toy2d.py                                    # about three minutes on two cores
    python examples/toy2d.py --steps 500 --data rings moons
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import zuko
from torch import Tensor, nn
from torch.distributions import Distribution
from tqdm import tqdm

import flowplug as fp
import flowplug_zuko

REACH = 4.0


def checkerboard(rows: int) -> Tensor:
    """Uniform on the dark squares of a 4 x 4 board."""
    column, across = torch.randint(4, (rows,)), torch.randint(2, (rows,))
    corner = torch.stack([column, 2 * across + column % 2], dim=1)
    return 1.5 * (corner + torch.rand(rows, 2) - 2)


def moons(rows: int) -> Tensor:
    """Two interleaved half circles."""
    upper, angle = torch.randint(2, (rows,)), math.pi * torch.rand(rows)
    sign = 2 * upper - 1
    points = torch.stack([angle.cos() - 0.5 + (1 - upper), sign * (angle.sin() - 0.25)], dim=1)
    return 1.6 * points + 0.12 * torch.randn(rows, 2)


def pinwheel(rows: int) -> Tensor:
    """Five bent blades."""
    radius, width = 1 + 0.3 * torch.randn(rows), 0.1 * torch.randn(rows)
    angle = 2 * math.pi / 5 * torch.randint(5, (rows,)) + 0.25 * radius.exp()
    cos, sin = angle.cos(), angle.sin()
    return 1.7 * torch.stack([radius * cos - width * sin, radius * sin + width * cos], dim=1)


def spirals(rows: int) -> Tensor:
    """Two arms of a spiral."""
    angle = 3 * math.pi * torch.rand(rows).sqrt()
    arm = 2 * torch.randint(2, (rows,)) - 1
    return (arm * angle / 3)[:, None] * torch.stack([-angle.cos(), angle.sin()], dim=1) + 0.1 * torch.randn(rows, 2)


def rings(rows: int) -> Tensor:
    """Four concentric circles."""
    radius, angle = 0.75 * (1 + torch.randint(4, (rows,))), 2 * math.pi * torch.rand(rows)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.06 * torch.randn(rows, 2)


DATA = {data.__name__: data for data in (checkerboard, moons, pinwheel, spirals, rings)}


def residual(norm: fp.InfNorm | fp.Gram | fp.LearnedOrder, blocks: int) -> zuko.flows.Flow:
    """Residual blocks, with a zuko base."""
    parts: list[nn.Module] = []
    for _ in range(blocks):
        g = fp.LipschitzMLP(2, (256,), bound=0.99, norm=norm)
        parts += [fp.ActNorm(2), fp.ResidualTransform(g)]
    transform = flowplug_zuko.ZukoTransform(fp.ComposedTransform(*parts))
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(2), torch.ones(2), buffer=True
    )
    return zuko.flows.Flow(transform, base)


# A coupling network has one input and two outputs, a block two of each: with a wider layer the parameters agree.
MODELS: dict[str, Callable[[int], zuko.flows.Flow]] = {
    "residual, 2-norm": lambda blocks: residual(fp.Gram(), blocks),
    "residual, inf-norm": lambda blocks: residual(fp.InfNorm(), blocks),
    "residual, learned orders": lambda blocks: residual(fp.LearnedOrder(), blocks),
    "coupling (RealNVP)": lambda blocks: zuko.flows.RealNVP(2, transforms=blocks, hidden_features=(320,)),
}


def fit(flow: zuko.flows.Flow, data: Callable[[int], Tensor], seconds: float, steps: int | None, bar: tqdm) -> None:
    """Maximum likelihood with fresh rows at every step, for the seconds or, if given, the steps."""
    optimizer, start, step = torch.optim.Adam(flow.parameters(), 5e-3), time.perf_counter(), 0
    while True:
        done = (time.perf_counter() - start) / seconds if steps is None else step / steps
        if done >= 1:
            return
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * math.cos(done * math.pi / 2)
        loss = -flow().log_prob(data(256)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 20 == 0:
            bar.set_postfix(loss=f"{float(loss.detach()):.3f}", step=step)


@torch.no_grad()
def show(panel: plt.Axes, below: plt.Axes, model: Distribution) -> None:
    """Draws the density and, below it, samples."""
    line = torch.linspace(-REACH, REACH, 150)
    points = torch.cartesian_prod(line, line)
    density = model.log_prob(points).exp().reshape(150, 150)
    panel.imshow(density.T.numpy(), origin="lower", extent=(-REACH, REACH) * 2)
    below.scatter(*model.sample((2000,)).T.numpy(), s=1, linewidths=0)
    below.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal")


def main() -> None:
    """Fits, prints and plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--seconds", type=float, default=8, help="training time of each model")
    parser.add_argument("--steps", type=int, help="number of training steps instead")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("toy2d.png"))
    options = parser.parse_args()
    torch.manual_seed(0)

    size = (2 * len(options.data), len(MODELS))
    figure, panels = plt.subplots(*size, figsize=(3 * size[1], 3 * size[0]), squeeze=False, layout="constrained")
    lines = [f"{'mean test log-likelihood (nats)':34}" + "".join(f"{data:>14}" for data in options.data)]
    with tqdm(total=len(MODELS) * len(options.data)) as bar:
        for column, (name, make) in enumerate(MODELS.items()):
            scores = []
            for row, data in enumerate(options.data):
                bar.set_description(f"{name}, {data}")
                flow = make(options.blocks)
                fit(flow, DATA[data], options.seconds, options.steps, bar)
                model = flow.eval()()
                with torch.no_grad():
                    scores.append(float(model.log_prob(DATA[data](10_000)).mean()))
                panel, below = panels[2 * row : 2 * row + 2, column]
                show(panel, below, model)
                panel.set_title(f"{name}: {scores[-1]:.2f}", fontsize="small")
                for axes in (panel, below):
                    axes.set(xticks=[], yticks=[])
                bar.update()
            size = sum(parameter.numel() for parameter in flow.parameters())
            lines.append(f"{name:26}{size:8}" + "".join(f"{score:14.3f}" for score in scores))
    print("\n".join(lines))
    figure.savefig(options.out, dpi=80)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
