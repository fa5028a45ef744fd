"""A run of the study: a flow by its name, on a target by its name."""

import math
from pathlib import Path

import torch
from torch import Tensor

from common.processes import Processes
from common.resumable import Run
from common.runs import Config
from variational.models import START_ROWS, Sampler, make
from variational.targets import Target

VALIDATED = 4_000  # latent points
VALIDATION_SEED = 2**31  # of no run


class Training(Run):
    """A run on latent points of its own seed, by the mean log-weight of their draws; the rest is as in `Run`."""

    density: Sampler
    averaged: Sampler

    def __init__(
        self,
        config: Config,
        target: Target,
        processes: Processes,
        folder: Path,
        *,
        code: str = "",
        every: float = math.inf,
    ) -> None:
        self.target = target
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        self.held_out = torch.randn(VALIDATED, target.features, generator=generator).to(processes.device)
        super().__init__(config, processes, folder, code=code, every=every)

    def made(self) -> Sampler:
        """The flow, started from latent points."""
        sampler = make(self.config["model"], self.target, self.config["parameters"]).to(self.processes.device)
        sampler.start(self.noise(START_ROWS))
        return sampler

    def batch(self, size: int) -> tuple[Tensor, ...]:
        """Latent points."""
        return (self.processes.share(self.noise(size)),)

    def noise(self, rows: int) -> Tensor:
        """Latent points ``(rows, features)`` of the seed."""
        return torch.randn(rows, self.target.features, generator=self.generator, device=self.processes.device)

    @property
    def validated(self) -> tuple[Tensor, ...]:
        """Latent points, the same in every run."""
        return (self.held_out,)
