"""A run of the benchmark: a flow by its name, on a table."""

import math
from pathlib import Path

from torch import Tensor

from common.densities import Density
from common.processes import Processes
from common.resumable import TableRun, thinned
from common.runs import Config
from common.tables import Table
from uci.models import make

CHECK_ROWS = 10_000  # at most
START_ROWS = 2_000


class Training(TableRun):
    """A run on ``data``; the rest is as in `Run`."""

    density: Density
    averaged: Density

    def __init__(
        self,
        config: Config,
        data: Table,
        processes: Processes,
        folder: Path,
        *,
        code: str = "",
        every: float = math.inf,
    ) -> None:
        self.data = data
        super().__init__(config, processes, folder, code=code, every=every)

    def made(self) -> Density:
        """The flow, started from some of the rows."""
        density = make(self.config["model"], self.data.features, self.config["parameters"]).to(self.data.train.device)
        density.start(thinned(self.data.train, START_ROWS))
        return density

    @property
    def rows(self) -> int:
        """Of train."""
        return len(self.data.train)

    def told(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The rows alone."""
        return (self.data.train[rows],)

    @property
    def validated(self) -> tuple[Tensor, ...]:
        """Some of the rows of val."""
        return (thinned(self.data.val, CHECK_ROWS),)
