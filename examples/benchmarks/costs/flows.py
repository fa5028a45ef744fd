"""The flows and the settings of these measurements."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import zuko
from torch import Tensor, nn
from torch._dynamo.utils import counters

import flowplug_zuko
from benchmarks.measurements import Figure, Recorded, over
from benchmarks.models import Loss
from common.clock import paired
from common.densities import Density, of_zuko
from common.training import WARM

TRIES = 6  # at timing rounds in which nothing is compiled
BACKENDS = ("inductor", "aot_eager", "eager")


@dataclass(frozen=True)
class Sizes(Recorded):
    """How large, and how often."""

    features: tuple[int, ...] = (6, 43)
    rows: int = 256  # of a batch
    blocks: int = 3  # residual or spline transforms of a flow
    rounds: int = 25  # of each timing
    steps: int = 2000  # in which recompilations are counted
    samples: int = 1000  # that are drawn
    large: int = 65_536  # rows of the evaluation whose memory is measured
    images: tuple[int, int] = (512, 32)  # channels of the convolutional network, side of its images
    flows: tuple[str, ...] = ()  # whose graphs are counted; none for all
    backend: str = "inductor"  # of torch.compile; eager compiles nothing


def residual_flow(features: int, blocks: int) -> Density:
    """At its defaults, in zuko."""
    return of_zuko(flowplug_zuko.ResidualFlow(features, transforms=blocks))


def spline_flow(features: int, blocks: int) -> Density:
    """Zuko's neural spline flow."""
    return of_zuko(zuko.flows.NSF(features, transforms=blocks, hidden_features=(128, 128)))


def started(density: Density, rows: int, *shape: int) -> tuple[Density, Tensor]:
    """The flow after its start from data, and a batch."""
    density.start(torch.randn(1000, *shape))
    return density, torch.randn(rows, *shape)


@contextmanager
def compiling(flows: int) -> Iterator[None]:
    """A fresh compiler, with room for several flows where a user's process has one.

    torch.compile gives up on a function after so many variants, and flows share their functions.
    """
    torch.compiler.reset()
    limit = torch._dynamo.config.cache_size_limit
    torch._dynamo.config.cache_size_limit = flows * limit
    try:
        yield
    finally:
        torch._dynamo.config.cache_size_limit = limit


def steps_over(own: Loss, other: Loss, x: Tensor, modules: list[nn.Module], rounds: int) -> Figure:
    """CPU time of a training step by that of another, without the optimizer; the ratio of totals, as lengths vary."""
    losses = {"own": own, "other": other}
    times = settled({name: partial(backward, loss, x) for name, loss in losses.items()}, modules, rounds)
    return over(times["own"], times["other"], total=True)


def settled(steps: Mapping[str, Callable[[], object]], modules: list[nn.Module], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step in each round; timed anew, a few times at most, if anything was compiled meanwhile.

    What is compiled late, `one_graph.py` counts for itself.
    """
    times, clear = dict[str, list[float]](), nn.ModuleList(modules).zero_grad
    for _ in range(TRIES):
        paired(steps, WARM, warm=0, before=clear)
        before = frames()
        times = paired(steps, rounds, warm=0, before=clear)
        if frames() == before:
            break
    return times


def frames() -> int:
    """Frames that torch.compile has traced since its counters were cleared."""
    return counters["frames"]["total"]


def backward(loss: Loss, x: Tensor) -> None:
    """Forward and backward of a batch."""
    torch.autograd.backward(loss(x))
