"""Compares recipes for the recommended flow of images at equal CPU time, on validation images.

Each recipe changes one thing of the default: what stands before the residual transforms and what behind, how these
start, their number, width, patches and norm, the learning rate. Measured are bits per dimension of validation images,
before the first step and behind the last; the time of the start counts. Recipes whose patches do not tile the images
are left out.

    python examples/benchmarks/image_recipes.py
    python examples/benchmarks/image_recipes.py --data FILE.npz --seconds 100
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

import flowplug as fp
from benchmarks.measurements import Figure, Measurement, Recorded, run
from common.command import among, refusing
from common.densities import Density, of_transform, size
from common.training import Options
from common.trial import fit
from images.data import EMBEDDED, Images, load
from images.models import start_of

Order = Callable[[list[fp.Transform], list[fp.Transform]], tuple[list[fp.Transform], list[fp.Transform]]]


def amid(before: list[fp.Transform], behind: list[fp.Transform]) -> tuple[list[fp.Transform], list[fp.Transform]]:
    """As by default."""
    return before, behind


def first(before: list[fp.Transform], behind: list[fp.Transform]) -> tuple[list[fp.Transform], list[fp.Transform]]:
    """All of the start before the residual transforms."""
    return [*before, *behind], []


def last(before: list[fp.Transform], behind: list[fp.Transform]) -> tuple[list[fp.Transform], list[fp.Transform]]:
    """All of the start behind the residual transforms."""
    return [], [*before, *behind]


@dataclass(frozen=True)
class Ordered:
    """The default start of some images, in another order."""

    start: fp.ImageStart
    order: Order
    marginals: bool

    def _parts(self, event_shape: Sequence[int]) -> tuple[list[fp.Transform], list[fp.Transform]]:
        behind, features = self.start.behind(event_shape), math.prod(event_shape)
        if self.marginals:
            there, back = fp.Reshape(event_shape, features), fp.Reshape(features, event_shape)
            behind += [there, fp.MarginalGaussianization(features, knots=25, share=1.0), back]
        return self.order(self.start.before(event_shape), behind)

    def before(self, event_shape: Sequence[int]) -> list[fp.Transform]:
        """In front of the residual transforms."""
        return self._parts(event_shape)[0]

    def behind(self, event_shape: Sequence[int]) -> list[fp.Transform]:
        """Behind them."""
        return self._parts(event_shape)[1]


@dataclass(frozen=True)
class Recipe:
    """What differs from the default."""

    order: Order = amid
    marginals: bool = False  # of all pixels, at the end
    identities: bool = True  # residual transforms start as such
    number: float = 1.0  # of residual transforms, times that of the default
    width: float = 1.0  # of their networks, the same
    options: Mapping[str, Any] = field(default_factory=dict)  # of the stack
    training: Mapping[str, Any] = field(default_factory=dict)
    images: int = 50_000  # to start from, at most

    def tiles(self, images: Images) -> bool:
        """Whether patches of a size of its own do."""
        return all(side % self.options.get("size", 1) == 0 for side in images.event_shape[1:])

    def stack(self, images: Images, transforms: int, hidden: int) -> fp.ImageStack:
        """The flow."""
        start = Ordered(start_of(images), self.order, self.marginals)
        sizes = {
            "transforms": max(1, round(self.number * transforms)),
            "hidden_features": (round(self.width * hidden),),
        }
        stack = fp.ImageStack(images.event_shape, start=start, **{**sizes, **self.options})
        if not self.identities:
            for module in stack.modules():
                if isinstance(module, fp.LipschitzMLP):
                    fp.PathNorm().initialize_(cast("Tensor", module.layers[-1].weight))
        return stack


RECIPES = {
    "default": Recipe(),
    "start first": Recipe(first),
    "start first, marginals": Recipe(first, marginals=True),
    "start last": Recipe(last),
    "marginals at the end": Recipe(marginals=True),
    "no identities": Recipe(identities=False),
    "half of them, twice as wide": Recipe(number=0.5, width=2),
    "twice as many, half as wide": Recipe(number=2, width=0.5),
    "patches of 14": Recipe(width=0.25, options={"size": 14}),
    "patches of 4": Recipe(width=2, options={"size": 4}),
    "2-norm (Gram)": Recipe(options={"norm": fp.Gram()}),
    "LipSwish": Recipe(options={"activation": fp.LipSwish}),
    "1 product": Recipe(options={"logdet": fp.Krylov(terms=fp.Roulette(fp.Geometric(0.75, share=0.5), exact=1))}),
    "6 products": Recipe(options={"logdet": fp.Krylov(terms=fp.Roulette(fp.Geometric(0.5), exact=6))}),
    "start from 10,000": Recipe(images=10_000),
    "learning rate 1e-3": Recipe(training={"lr": 1e-3}),
    "learning rate 2e-3": Recipe(training={"lr": 2e-3}),
    "learning rate 5e-3": Recipe(training={"lr": 5e-3}),
    "batches of 32": Recipe(training={"batch": 32}),
}


@dataclass(frozen=True)
class Settings(Recorded):
    """What to train, and for how long."""

    data: str = EMBEDDED  # .npz file of uint8 images and labels, or digits
    seconds: float = 30  # CPU seconds of each, with its start
    transforms: int = 4
    hidden: int = 290
    images: int = 1000  # to validate on, at most
    seeds: tuple[int, ...] = (0,)
    only: tuple[str, ...] = tuple(RECIPES)  # recipes to try

    def __post_init__(self) -> None:
        super().__post_init__()
        among(self, "only", RECIPES)


def bits(density: Density, images: Images, x: Tensor) -> Figure:
    """The mean bits per dimension, and two standard errors."""
    with torch.no_grad():
        values = torch.cat([density(part) for part in torch.split(x, 100)])
    found = fp.bits_per_dim(values, images.event_shape, levels=images.levels)
    return Figure(float(found.mean()), "bits/dim", 2 * float(found.std()) / math.sqrt(len(found)))


def measure(settings: Settings) -> Iterator[Measurement]:
    """Every recipe for every seed."""
    with refusing():
        images = load(settings.data)
    x = images.fixed(images.val, settings.images)[0]
    for name in settings.only:
        for seed in settings.seeds:
            recipe = RECIPES[name]
            if not recipe.tiles(images):
                continue
            torch.manual_seed(seed)
            stack = recipe.stack(images, settings.transforms, settings.hidden)
            density = of_transform(stack, images.event_shape)
            begun = time.process_time()
            density.start(images.fixed(images.train, recipe.images)[0])
            left = max(1e-3, settings.seconds - (time.process_time() - begun))
            before = bits(density.eval(), images, x)
            told = {"lr": 3e-3, "batch": 64, "weight_decay": 1e-4} | dict(recipe.training)
            options = Options(seconds=left, clock=time.process_time, **told)
            training = fit(density.train(), batches(images), options, name)
            figures: dict[str, Figure | float] = {
                "started": before,
                "trained": bits(density.eval(), images, x),
                "steps": training.step,
                "parameters": size(stack),
            }
            setting = {"data": images.name, "seconds": settings.seconds, "seeds": [seed], "recipe": name}
            yield "Recipes for image flows", setting, figures


def batches(images: Images) -> Callable[[int], Tensor]:
    """Random training images, dequantised anew."""
    generator = torch.Generator().manual_seed(0)

    def sample(rows: int) -> Tensor:
        chosen = torch.randint(len(images.train), (rows,), generator=generator)
        return images.dequantised(images.train.pixels[chosen], generator)

    return sample


if __name__ == "__main__":
    run(measure, Settings, __doc__)
