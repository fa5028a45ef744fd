"""The flows whose densities are compared, by name: each a frozen recipe from images and a width to a transform."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import normflows as nf
from torch import nn

import flowplug as fp
from common.densities import Density, nearest, of_transform
from flowplug_normflows import from_normflows
from images.data import Images

Config = dict[str, Any]
PATCH = 64  # numbers of a patch, at most


class Recipe(Protocol):
    """Makes a flow."""

    @property
    def start(self) -> int:
        """How many images it starts from, at most."""

    def __call__(self, images: Images, config: Config, hidden: int) -> fp.Transform:
        """The transform, data to latent, its networks ``hidden`` wide."""


@dataclass(frozen=True)
class Recommended:
    """Residual transforms of patches behind a start from data: two for each block of the others."""

    start: int = 10_000

    def __call__(self, images: Images, config: Config, hidden: int) -> fp.Transform:
        """An `flowplug.ImageStack`."""
        shape, levels = images.event_shape, images.levels
        # Its default, which is for 256 levels, for as many as there are.
        start = fp.PixelStart(levels=levels) if math.prod(shape) <= 1024 else fp.PatchStart()
        return fp.ImageStack(shape, 2 * config["blocks"], (hidden,), start=start)


@dataclass(frozen=True)
class Published:
    """The residual flow of the paper, and what its tables and figures vary."""

    activation: Callable[[], nn.Module] = fp.LipSwish
    norm: fp.OperatorNorm = fp.Gram()  # noqa: RUF009 -- frozen and stateless
    logdet: fp.LogDet | None = None
    start: int = 500

    def __call__(self, images: Images, config: Config, hidden: int) -> fp.Transform:
        """An `flowplug.PublishedImageStack` of as many scales as the images have room for, up to three."""
        return fp.PublishedImageStack(
            images.event_shape,
            (config["blocks"],) * scales(images),
            (hidden, hidden),
            dense_transforms=1,
            dense_features=(min(hidden, 128),) * 2,
            alpha=config["alpha"],
            norm=self.norm,
            activation=self.activation,
            logdet=self.logdet,
            eval_logdet=self.logdet,
        )


@dataclass(frozen=True)
class Glow:
    """Blocks of normflows' Glow on logits, squeezed once, with or without transforms of flowplug behind them.

    Half of the blocks make room for the latter.
    """

    behind: Callable[[Images, Config, int], list[fp.Transform]] | None = None
    start: int = 1000

    def __call__(self, images: Images, config: Config, hidden: int) -> fp.Transform:
        """Eight blocks for each of the others'; data to latent."""
        shape = images.event_shape
        parts: list[fp.Transform] = [fp.Logit(config["alpha"]), fp.Squeeze(2)]
        count = 8 * config["blocks"] // (1 if self.behind is None else 2)
        parts.append(glow_blocks(4 * shape[0], hidden, count))
        if self.behind is not None:
            parts += [fp.InverseTransform(fp.Squeeze(2)), *self.behind(images, config, hidden)]
        return fp.ComposedTransform(*parts)


@dataclass(frozen=True)
class MultiscaleGlow:
    """The same at several scales, half of the channels factored out behind each."""

    start: int = 1000

    def __call__(self, images: Images, config: Config, hidden: int) -> fp.Transform:
        """As many blocks in all."""
        count, channels = max(1, scales(images) - 1), images.event_shape[0]
        parts: list[fp.Transform] = []
        for _ in range(count):
            blocks = glow_blocks(4 * channels, hidden, math.ceil(8 * config["blocks"] / count))
            parts.append(fp.ComposedTransform(fp.Squeeze(2), blocks))
            channels *= 2
        multiscale = fp.MultiscaleTransform(*parts, event_shape=images.event_shape)
        return fp.ComposedTransform(fp.Logit(config["alpha"]), multiscale)


def glow_blocks(channels: int, hidden: int, count: int) -> fp.Transform:
    """Blocks of normflows, as its documentation builds them."""
    blocks = [nf.flows.GlowBlock(channels, hidden, split_mode="channel", scale=True) for _ in range(count)]
    return from_normflows(blocks, event_dim=3)


def patches(images: Images, config: Config, hidden: int) -> list[fp.Transform]:
    """What Glow is given of flowplug: residual transforms of patches, as in the recommended flow."""
    del hidden
    channels, *sides = images.event_shape
    common = math.gcd(*sides)
    size = max(s for s in range(1, common + 1) if common % s == 0 and (s == 1 or channels * s**2 <= PATCH))
    features, places = channels * size**2, math.prod(side // size for side in sides)
    parts = list[fp.Transform]()
    for number in range(2 * config["blocks"]):
        g = fp.LipschitzMLP(features, (features,), context_features=places, norm=fp.PathNorm())
        residual = fp.ResidualTransform(g)
        parts.append(fp.PatchTransform(residual, images.event_shape, size, shift=size // 2 * (number % 2)))
    return parts


def scales(images: Images) -> int:
    """How many scales there are, from one to three: squeezes leave at least four pixels a side."""
    sides, count = images.event_shape[1:], 1
    while count < 3 and all(side % 2 == 0 and side >= 8 for side in sides):
        sides, count = tuple(side // 2 for side in sides), count + 1
    return count


RECIPES: dict[str, Recipe] = {
    "recommended": Recommended(),
    "published": Published(),
    "published-truncated": Published(logdet=fp.PowerSeries(terms=fp.Truncated(5))),
    "published-elu": Published(nn.ELU),
    "published-softplus": Published(nn.Softplus),
    "published-sine-huber": Published(fp.SineHuber),
    "published-inf-norm": Published(norm=fp.InfNorm()),
    "published-learned-order": Published(norm=fp.LearnedOrder(shared=True)),
    "glow": Glow(),
    "glow-multiscale": MultiscaleGlow(),
    "glow+flowplug": Glow(behind=patches),
}


def make(images: Images, config: Config) -> Density:
    """The flow of this name, one of `RECIPES`, with about so many parameters."""
    recipe = partial(RECIPES[config["model"]], images, config)

    def density(hidden: int) -> Density:
        transform = recipe(hidden)
        sizes = [int(size or 0) for size in transform.forward_shape(images.event_shape)]
        return of_transform(transform, sizes)

    return nearest(density, config["parameters"])
