"""Densities in the plane that tutorials fit, and how they are drawn."""

import math

import torch
from matplotlib.axes import Axes
from torch import Tensor

from common.densities import Density

REACH = 4.0
CELLS = 100  # of a histogram, each way


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


def mixture(rows: int) -> Tensor:
    """Eight Gaussians on a circle."""
    angles = 2 * math.pi * torch.randint(8, (rows,)) / 8
    return 2 * torch.stack([angles.cos(), angles.sin()], 1) + 0.2 * torch.randn(rows, 2)


def sine(rows: int) -> Tensor:
    """A noisy sine."""
    x = 1.5 * torch.randn(rows)
    return torch.stack([x, torch.sin(2 * x) + 0.15 * torch.randn(rows)], 1)


DATA = {data.__name__: data for data in (checkerboard, moons, pinwheel, spirals, rings)}


def scatter(panel: Axes, points: Tensor) -> None:
    """Draws points ``(rows, 2)``."""
    panel.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=1, linewidths=0)
    panel.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal", xticks=[], yticks=[])


def histogram(panel: Axes, points: Tensor) -> None:
    """Draws the density of many points ``(rows, 2)``."""
    panel.hist2d(points[:, 0].numpy(), points[:, 1].numpy(), bins=CELLS, range=((-REACH, REACH),) * 2)
    panel.set(aspect="equal", xticks=[], yticks=[])


@torch.no_grad()
def show(panel: Axes, density: Density, below: Axes | None = None) -> None:
    """Draws the density and, below it, samples."""
    line = torch.linspace(-REACH, REACH, 150)
    values = density(torch.cartesian_prod(line, line)).exp().reshape(150, 150)
    panel.imshow(values.T.numpy(), origin="lower", extent=(-REACH, REACH) * 2)
    panel.set(xticks=[], yticks=[])
    if below is not None:
        scatter(below, density.sample(2000))
