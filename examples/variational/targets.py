"""Densities up to a normaliser that is known, with exact draws."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """A density without its normaliser.

    Args:
        features: Width of a point.
        log_prob: The logarithm ``(rows,)`` of the density without its normaliser at ``(rows, features)``, in nats.
        log_z: That of its integral.
        exact: Draws ``(rows, features)``, by torch's generator.
    """

    features: int
    log_prob: Callable[[Tensor], Tensor]
    log_z: float
    exact: Callable[[int], Tensor]


def funnel(features: int = 10, scale: float = 3.0) -> Target:
    r"""Neal's funnel (2003): :math:`v \sim N(0, s^2)`, all others :math:`x_i \sim N(0, e^v)`."""
    others = features - 1

    def log_prob(x: Tensor) -> Tensor:
        v, rest = x[:, 0], x[:, 1:]
        value: Tensor = -(v / scale).square() / 2 - others * v / 2 - (rest.square().sum(1) * (-v).exp()) / 2
        return value

    def exact(rows: int) -> Tensor:
        v = scale * torch.randn(rows, 1)
        return torch.cat([v, (v / 2).exp() * torch.randn(rows, others)], 1)

    return Target(features, log_prob, math.log(scale) + features / 2 * math.log(2 * math.pi), exact)


def rings(radii: tuple[float, ...] = (1.0, 2.0, 3.0), width: float = 0.2) -> Target:
    r"""Concentric rings, :math:`\sum_k \exp(-(|x| - r_k)^2 / 2 s^2)` in the plane.

    .. math:: Z = 2 \pi \sum_k \left[ s^2 e^{-r_k^2 / 2 s^2} + r_k s \sqrt{2 \pi} \, \Phi(r_k / s) \right]
    """
    shares = torch.tensor([ring(radius, width) for radius in radii])
    limit = max(radii) + 8 * width  # no radius beyond

    def log_prob(x: Tensor) -> Tensor:
        distances = x.square().sum(1, keepdim=True).sqrt() - x.new_tensor(radii)
        return (distances / width).square().div(-2).logsumexp(1)

    def exact(rows: int) -> Tensor:
        r = torch.empty(0)
        while len(r) < rows:  # radii have the density r N(r; r_k, s): by rejection, with shares that it leaves
            found = torch.tensor(radii)[torch.randint(len(radii), (2 * rows,))] + width * torch.randn(2 * rows)
            r = torch.cat([r, found[limit * torch.rand(2 * rows) < found]])
        angle = 2 * math.pi * torch.rand(rows)
        return torch.stack([r[:rows] * angle.cos(), r[:rows] * angle.sin()], 1)

    return Target(2, log_prob, math.log(2 * math.pi * float(shares.double().sum())), exact)


def ring(radius: float, width: float) -> float:
    r"""The integral of :math:`r \exp(-(r - r_k)^2 / 2 s^2)` over positive r."""
    below = (1 + math.erf(radius / width / math.sqrt(2))) / 2
    return width**2 * math.exp(-((radius / width) ** 2) / 2) + radius * width * math.sqrt(2 * math.pi) * below


def mixture(modes: int = 8, radius: float = 3.0, width: float = 0.5) -> Target:
    r"""As many round Gaussians on a circle: :math:`\sum_k \exp(-|x - m_k|^2 / 2 s^2)` in the plane."""
    angles = 2 * math.pi * torch.arange(modes) / modes
    means = radius * torch.stack([angles.cos(), angles.sin()], 1)

    def log_prob(x: Tensor) -> Tensor:
        return ((x[:, None] - means.to(x)) / width).square().sum(2).div(-2).logsumexp(1)

    def exact(rows: int) -> Tensor:
        return means[torch.randint(modes, (rows,))] + width * torch.randn(rows, 2)

    return Target(2, log_prob, math.log(modes * 2 * math.pi * width**2), exact)


def rosenbrock(
    blocks: int = 2, length: int = 3, mean: float = 0.5, centre: float = 2.0, steepness: float = 5.0
) -> Target:
    r"""The hybrid Rosenbrock density of Pagani, Wiegand and Nadarajah (2022).

    .. math:: \exp\left( -a (x_1 - \mu)^2 - b \sum_{j,i} (x_{j,i} - x_{j,i-1}^2)^2 \right), \qquad
        Z = \pi^{D/2} a^{-1/2} b^{-(D - 1)/2}

    with :math:`x_{j,1} = x_1` for all ``blocks`` j, of which each is so long: D = 1 + blocks (length - 1).
    """
    features = 1 + blocks * (length - 1)

    def log_prob(x: Tensor) -> Tensor:
        rest = x[:, 1:].view(-1, blocks, length - 1)
        before = torch.cat([x[:, :1, None].expand(-1, blocks, 1), rest[..., :-1]], 2)
        value: Tensor = -centre * (x[:, 0] - mean).square() - steepness * (rest - before.square()).square().sum((1, 2))
        return value

    def exact(rows: int) -> Tensor:
        first = mean + torch.randn(rows, 1, 1) / math.sqrt(2 * centre)
        parts = [first.expand(-1, blocks, 1)]
        for _ in range(length - 1):
            parts.append(parts[-1].square() + torch.randn(rows, blocks, 1) / math.sqrt(2 * steepness))
        return torch.cat([first[:, 0], torch.cat(parts[1:], 2).flatten(1)], 1)

    log_z = features / 2 * math.log(math.pi) - math.log(centre) / 2 - (features - 1) / 2 * math.log(steepness)
    return Target(features, log_prob, log_z, exact)


TARGETS: dict[str, Callable[[], Target]] = {
    "funnel": funnel,
    "rings": rings,
    "mixture": mixture,
    "rosenbrock": rosenbrock,
}
