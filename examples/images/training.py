"""A run on images: dequantised anew in each pass, mirrored where that is asked for."""

import math
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from common.densities import Density, Model
from common.processes import Processes
from common.resumable import TableRun, options
from common.runs import Config
from images.data import Images
from images.models import RECIPES, make


class ImageRun(TableRun):
    """A run on ``images``; the rest is as in `Run`."""

    def __init__(
        self,
        config: Config,
        images: Images,
        processes: Processes,
        folder: Path,
        *,
        code: str = "",
        every: float = math.inf,
    ) -> None:
        self.images = images
        self.val, self.test = (
            images.fixed(part, config[name]) for name, part in (("val", images.val), ("test", images.test))
        )
        super().__init__(config, processes, folder, code=code, every=every)

    @abstractmethod
    def made(self) -> Model:
        """As in `Run`."""

    @property
    def rows(self) -> int:
        """Of train."""
        return len(self.images.train)

    def told(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Images and their labels."""
        pixels = self.images.train.pixels[rows]
        if self.config["flips"]:
            mirrored = torch.rand(len(rows), 1, 1, 1, generator=self.generator, device=pixels.device) < 0.5
            pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        return self.images.dequantised(pixels, self.generator), self.images.train.labels[rows]

    @property
    def validated(self) -> tuple[Tensor, ...]:
        """Images and their labels."""
        return self.val

    def start(self, by: Callable[[Tensor], object], rows: int) -> None:
        """Calls a model's start with so many images, the first, with noise of no seed; its time is part of the run."""
        images, clock = self.images.fixed(self.images.train, rows)[0], options(self.config).clock
        begun = clock()
        by(images)
        self.start_seconds = clock() - begun


class DensityRun(ImageRun):
    """A run of a density."""

    density: Density
    averaged: Density

    def made(self) -> Density:
        """The flow, started from some of the images."""
        density = make(self.images, self.config).to(self.processes.device)
        self.start(density.start, RECIPES[self.config["model"]].start)
        return density

    def told(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The images alone."""
        return super().told(rows)[:1]

    @property
    def validated(self) -> tuple[Tensor, ...]:
        """The images alone."""
        return self.val[:1]
