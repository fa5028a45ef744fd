"""The flows whose densities are compared, by name: each a frozen recipe from images and a width to a transform."""

import math
from collections.abc import Callable, Sequence
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


class Recipe(Protocol):
    """Makes a flow."""

    @property
    def start(self) -> int:
        """How many images it starts from, at most."""

    def __call__(self, images: Images, config: Config, hidden: int) -> fp.Transform:
        """The transform, data to latent, its networks ``hidden`` wide."""


@dataclass(frozen=True)
class Recommended:
    """Residual transforms of patches amid a start from data, as many as by default."""

    start: int = 50_000

    def __call__(self, images: Images, config: Config, hidden: int) -> fp.Transform:
        """An `flowplug.ImageStack`."""
        del config
        return self.stack(images, hidden)

    def stack(self, images: Images, hidden: int) -> fp.ImageStack:
        """The same."""
        return fp.ImageStack(images.event_shape, hidden_features=(hidden,), start=start_of(images))


def start_of(images: Images) -> fp.ImageStart:
    """The start that `flowplug.ImageStack` would choose, for as many levels as there are."""
    return fp.PixelStart(levels=images.levels) if math.prod(images.event_shape) <= 1024 else fp.PatchStart()


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
            (config["blocks"],) * (1 + squeezes(images, 2)),
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
    """Blocks of normflows' Glow on logits, squeezed once."""

    blocks: int = 16
    start: int = 1000

    def __call__(self, images: Images, config: Config, hidden: int) -> fp.Transform:
        """A flow of one scale."""
        return fp.ComposedTransform(fp.Logit(config["alpha"]), *squeezed_blocks(images, hidden, self.blocks))


@dataclass(frozen=True)
class Mixed:
    """Blocks of Glow behind the residual transforms of the recommended flow, amid the same start."""

    blocks: int = 8
    widest: int = 256
    start: int = 10_000

    def __call__(self, images: Images, config: Config, hidden: int) -> fp.Transform:
        """Residual networks of twice the width of Glow's, but no wider than by default."""
        del config
        start = Amid(start_of(images), tuple(squeezed_blocks(images, hidden, self.blocks)))
        return fp.ImageStack(images.event_shape, hidden_features=(min(2 * hidden, self.widest),), start=start)


@dataclass(frozen=True)
class Amid:
    """A start, and other transforms between the residual ones and what is last of it."""

    start: fp.ImageStart
    parts: tuple[fp.Transform, ...]

    def before(self, event_shape: Sequence[int]) -> list[fp.Transform]:
        """As of the start."""
        return self.start.before(event_shape)

    def behind(self, event_shape: Sequence[int]) -> list[fp.Transform]:
        """The others first."""
        return [*self.parts, *self.start.behind(event_shape)]


@dataclass(frozen=True)
class MultiscaleGlow:
    """The same blocks shared out among several scales, behind each of which half of the channels is factored out."""

    blocks: int = 16
    start: int = 1000

    def __call__(self, images: Images, config: Config, hidden: int) -> fp.Transform:
        """A flow whose latent is a vector."""
        count, channels = max(1, squeezes(images, 3)), images.event_shape[0]
        parts: list[fp.Transform] = []
        for _ in range(count):
            blocks = glow_blocks(4 * channels, hidden, math.ceil(self.blocks / count))
            parts.append(fp.ComposedTransform(fp.Squeeze(2), blocks))
            channels *= 2
        multiscale = fp.MultiscaleTransform(*parts, event_shape=images.event_shape)
        return fp.ComposedTransform(fp.Logit(config["alpha"]), multiscale)


def squeezed_blocks(images: Images, hidden: int, count: int) -> list[fp.Transform]:
    """Blocks of Glow on images squeezed once, which come out as they were."""
    blocks = glow_blocks(4 * images.event_shape[0], hidden, count)
    return [fp.Squeeze(2), blocks, fp.InverseTransform(fp.Squeeze(2))]


def glow_blocks(channels: int, hidden: int, count: int) -> fp.Transform:
    """Blocks of normflows, as its documentation builds them."""
    blocks = [nf.flows.GlowBlock(channels, hidden, split_mode="channel", scale=True) for _ in range(count)]
    return from_normflows(blocks, event_dim=3)


def squeezes(images: Images, most: int) -> int:
    """How often images can be squeezed to no less than four pixels a side."""
    sides, count = images.event_shape[1:], 0
    while count < most and all(side % 2 == 0 and side >= 8 for side in sides):
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
    "glow+flowplug": Mixed(),
}


def make(images: Images, config: Config) -> Density:
    """The flow of this name, one of `RECIPES`, with about so many parameters."""
    recipe = partial(RECIPES[config["model"]], images, config)

    def density(hidden: int) -> Density:
        transform = recipe(hidden)
        sizes = [int(size or 0) for size in transform.forward_shape(images.event_shape)]
        return of_transform(transform, sizes)

    return nearest(density, config["parameters"])
