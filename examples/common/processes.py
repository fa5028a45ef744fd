"""The processes that train one flow together, each on its share of the rows."""

import datetime
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

import flowplug as fp

T = TypeVar("T")
CHUNK = 1000  # rows that are evaluated at a time
ASSERTED = "NaN or infinite values"  # what flowplug's layers say when they are compiled: then torch alone can raise


class Processes:
    """Those that torchrun started, or this one alone."""

    def __init__(self, device: str) -> None:
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = torch.device(device)
        if self.device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.device.index or 0)))
            torch.cuda.set_device(self.device)
        if self.world > 1:
            # The others wait while the first downloads and prepares.
            # What the hosts tell each other waits for no GPU.
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            distributed.init_process_group(backend, timeout=datetime.timedelta(hours=3))

    def close(self) -> None:
        """Leaves the group."""
        if self.world > 1:
            distributed.destroy_process_group()

    def mean(self, values: Sequence[float]) -> Sequence[float]:
        """The mean of each value over processes."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device="cpu")
        distributed.all_reduce(total)
        means: list[float] = (total / self.world).tolist()
        return means

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401 -- whatever can be pickled
        """The value of each process."""
        values = [value] * self.world
        if self.world > 1:
            distributed.all_gather_object(values, value)
        return values

    def first_alone(self, work: Callable[[], T]) -> T:
        """Calls ``work`` in the first process, then in the others."""
        if self.rank > 0:
            distributed.barrier()
        outcome = work()
        if self.rank == 0 and self.world > 1:
            distributed.barrier()
        return outcome

    def share(self, rows: Tensor) -> Tensor:
        """Every ``world``-th row, this process's own."""
        return rows[self.rank :: self.world]

    @torch.no_grad()
    def log_likelihoods(self, density: nn.Module, *rows: Tensor) -> Tensor:
        """The log-likelihood of each row of these tensors in nats, in eval mode."""
        density.eval()
        parts = zip(*(torch.split(self.share(values), CHUNK) for values in rows), strict=True)
        own = torch.cat([defined(density, *part) for part in parts]).cpu()
        values = own.new_empty(len(rows[0]), *own.shape[1:])
        for rank, part in enumerate(self.gather(own)):
            values[rank :: self.world] = part
        return values


def defined(density: nn.Module, *x: Tensor) -> Tensor:
    """Log-likelihoods ``(rows,)``, NaN where a layer overflows: processes that wait for each other cannot raise.

    So is the gradient of every parameter then.
    """
    try:
        values: Tensor = density(*x)
    except (fp.NonFiniteError, fp.SingularMatrixError, RuntimeError) as error:
        if not isinstance(error, fp.FlowplugError) and ASSERTED not in str(error):
            raise
        total = torch.stack([parameter.sum() for parameter in density.parameters()]).sum()
        return (math.nan * total).expand(len(x[0]))
    return values


class Defined(nn.Module):
    """What is `defined` of a flow, as a module."""

    def __init__(self, density: nn.Module) -> None:
        super().__init__()
        self.density = density

    def forward(self, *x: Tensor) -> Tensor:
        """Log-likelihoods ``(rows,)`` of the rows of these tensors."""
        return defined(self.density, *x)
