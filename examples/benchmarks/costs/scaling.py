"""What is measured as it grows: flows in training, evaluation and sampling, and the parts of a residual flow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import zuko
from torch import Tensor, nn

import flowplug as fp
import flowplug_zuko
from benchmarks.models import likelihood_loss
from common.clock import paired
from common.densities import Density, of_zuko, zuko_density

Call = Callable[[], object]
LONG = 1.0  # seconds from which one run is enough
NUMBERS = 2**24  # that the Jacobians of all rows hold at most


def residual(features: int, blocks: int) -> Density:
    """At its defaults, in zuko."""
    return of_zuko(flowplug_zuko.ResidualFlow(features, transforms=blocks))


def wide(features: int, blocks: int) -> Density:
    """The same with hidden layers as wide as the events and exact log-dets, which then take D products a row."""
    exact = fp.ExactLogDet()
    flow = flowplug_zuko.ResidualFlow(features, transforms=blocks, hidden_features=(features,), eval_logdet=exact)
    return of_zuko(flow)


def dense(features: int, blocks: int) -> Density:
    """Dense transforms behind a whitening."""
    flow = flowplug_zuko.DenseFlow(features, transforms=blocks)
    return zuko_density(features, [flowplug_zuko.ZukoTransform(fp.Whitening(features)), *flow.transform.transforms])


def maf(features: int, blocks: int) -> Density:
    """Zuko's masked autoregressive flow, which draws samples feature by feature."""
    return of_zuko(zuko.flows.MAF(features, transforms=blocks, hidden_features=(128, 128)))


FLOWS: Mapping[str, Callable[[int, int], Density]] = {
    "residual": residual,
    "residual, D wide": wide,
    "dense": dense,
    "zuko MAF": maf,
}
WIDE = "residual, D wide"
PHASES = ("training", "evaluation", "sampling")


@dataclass(frozen=True)
class Case:
    """One flow in one phase; ``rows`` are worked off in batches."""

    flow: str
    phase: str
    features: int
    blocks: int
    rows: int
    batch: int

    @property
    def measured(self) -> int:
        """How many of the rows are, as exact log-dets of wide networks take long."""
        return min(self.rows, max(1, NUMBERS // self.features**2)) if self.flow == WIDE else self.rows

    def prepared(self) -> Call:
        """The work on a flow that has started from noise."""
        density = FLOWS[self.flow](self.features, self.blocks)
        density.start(torch.randn(max(64, 2 * self.features), self.features))
        density.train(self.phase == "training")
        if self.phase == "sampling":
            return partial(sample, density, self.measured, self.batch)
        work = train if self.phase == "training" else evaluate
        return partial(work, density, torch.randn(self.measured, self.features), self.batch)

    def whole(self) -> None:
        """Everything, from the flow on: what a process of its own does."""
        self.prepared()()


def train(density: Density, x: Tensor, batch: int) -> None:
    """Forward and backward of every batch, without an optimizer."""
    for part in torch.split(x, batch):
        density.zero_grad()
        torch.autograd.backward(-density(part).mean())


@torch.no_grad()
def evaluate(density: Density, x: Tensor, batch: int) -> Tensor:
    """Log-likelihoods ``(rows,)``."""
    return torch.cat([density(part) for part in torch.split(x, batch)])


@torch.no_grad()
def sample(density: Density, rows: int, batch: int) -> Tensor:
    """Draws ``(rows, features)``."""
    sizes = [min(batch, rows - start) for start in range(0, rows, batch)]
    return torch.cat([density.sample(size) for size in sizes])


def timed(works: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each, in turns; what takes long, once."""
    first = paired(works, 1, warm=0)
    short = {name: work for name, work in works.items() if first[name][0] < LONG}
    return first | paired(short, rounds, warm=0)


def parts_of(phase: str, features: int, blocks: int, rows: int, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of a residual flow and of its parts, each by itself or as what is missing where it is left out."""
    stack, x = fp.ResidualStack(features, blocks), torch.randn(rows, features)
    stack.start(torch.randn(max(64, 2 * features), features))
    stack.train(phase == "training")
    parts = [part for part in stack.transforms if isinstance(part, fp.Transform)]
    blocks_alone = [part for part in parts if isinstance(part, fp.ResidualTransform)]
    linear = [part for part in parts if not isinstance(part, fp.ResidualTransform)]
    works: dict[str, Call]
    if phase == "sampling":
        works = {
            "whole": partial(back, [stack], x),
            "linear parts": partial(back, linear, x),
            "solver": partial(back, blocks_alone, x),
        }
        return paired(works, rounds)
    step = gradient if phase == "training" else value
    works = {
        "whole": partial(step, [stack], x),
        "linear parts": partial(step, linear, x),
        "blocks": partial(step, blocks_alone, x),
        "networks": partial(without, step, blocks_alone, x),
    }
    if phase == "training":
        works["norms"] = partial(bounded, blocks_alone)
    times = paired(works, rounds, before=stack.zero_grad)
    networks, norms = times["networks"], times.get("norms", [0.0] * rounds)
    found = {"whole": times["whole"], "linear parts": times["linear parts"]}
    found |= {"networks": less(networks, norms), "log-dets": less(times["blocks"], networks)}
    return found | ({"norms": norms} if phase == "training" else {})


def less(times: Sequence[float], others: Sequence[float]) -> list[float]:
    """What the times are above the others."""
    return [one - other for one, other in zip(times, others, strict=True)]


def gradient(transforms: Sequence[fp.Transform], x: Tensor) -> None:
    """Forward and backward."""
    torch.autograd.backward(likelihood_loss(transforms, x))


@torch.no_grad()
def value(transforms: Sequence[fp.Transform], x: Tensor) -> None:
    """Forward alone."""
    likelihood_loss(transforms, x)


@torch.no_grad()
def back(transforms: Sequence[fp.Transform], y: Tensor) -> None:
    """The inverse, as samplers call it."""
    with fp.no_logdet():
        for transform in reversed(transforms):
            y = transform.inverse(y)[0]


def without(step: Callable[[Sequence[fp.Transform], Tensor], None], blocks: Sequence[fp.Transform], x: Tensor) -> None:
    """A step that has no log-dets."""
    with fp.no_logdet():
        step(blocks, x)


def bounded(blocks: Sequence[fp.ResidualTransform]) -> None:
    """Measured and scaled weights of the networks, and their gradient."""
    weights = [weight for block in blocks for weight in network(block.g).bounded_weights()]
    torch.autograd.backward(torch.stack([weight.sum() for weight in weights]).sum())


def network(g: nn.Module) -> fp.LipschitzMLP:
    """That of a block of the stack."""
    if not isinstance(g, fp.LipschitzMLP):
        raise TypeError(f"blocks of a ResidualStack have a LipschitzMLP; got {type(g).__name__}")
    return g
