"""A run of the study: an estimator by its name, on simulations of a task."""

import math
from pathlib import Path

from torch import Tensor

from common.processes import Processes
from common.resumable import TableRun
from common.runs import Config
from posteriors.models import Posterior, builder
from posteriors.tasks import Problem


class Training(TableRun):
    """A run on simulations of its own seed, a tenth of them held out, as in sbi; the rest is as in `Run`."""

    density: Posterior
    averaged: Posterior

    def __init__(
        self,
        config: Config,
        problem: Problem,
        processes: Processes,
        folder: Path,
        *,
        code: str = "",
        every: float = math.inf,
    ) -> None:
        self.problem = problem
        held = max(problem.simulations // 10, 1)
        pairs = problem.task.pairs(problem.simulations, config["seed"])
        self.fitted = tuple(part[held:].to(processes.device) for part in pairs)
        self.held_out = tuple(part[:held].to(processes.device) for part in pairs)
        super().__init__(config, processes, folder, code=code, every=every)

    def made(self) -> Posterior:
        """The estimator, started from some of the simulations."""
        theta, x = self.fitted
        build = builder(self.config["model"], self.config["parameters"])
        return Posterior(build(theta.cpu(), x.cpu())).to(theta.device)

    @property
    def rows(self) -> int:
        """Simulations to fit."""
        return len(self.fitted[0])

    def told(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Parameters and observations."""
        return tuple(part[rows] for part in self.fitted)

    @property
    def validated(self) -> tuple[Tensor, ...]:
        """What is held out."""
        return self.held_out
