"""Times of training steps, eager and compiled: forward and backward, without the optimizer."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

import flowplug as fp
from benchmarks.costs.flows import Sizes, backward, compiling, residual_flow, settled, spline_flow, started, steps_over
from benchmarks.measurements import Measurement, over
from benchmarks.models import loss_of
from common.densities import normflows_density, of_transform
from common.layers import residual_block
from common.training import nll


def compiled(sizes: Sizes) -> Iterator[Measurement]:
    """A stack of residual transforms, compiled by eager."""
    for features in sizes.features:
        hidden = (64, 64) if features <= 6 else (128,)
        stack = fp.ResidualStack(features, sizes.blocks, hidden)
        density, x = started(of_transform(stack, features), sizes.rows, features)
        with compiling(1):
            fast = nll(torch.compile(density, backend=sizes.backend))
            figure = steps_over(fast, nll(density), x, [density], sizes.rounds)
        setting = {"transforms": sizes.blocks, "rows": sizes.rows, "hidden": hidden, "D": features}
        yield "Compiled training steps", {**setting, "backend": sizes.backend}, {"compiled / eager": figure}


def splines(sizes: Sizes) -> Iterator[Measurement]:
    """Residual transforms at their defaults by as many spline transforms of zuko, both eager and both compiled."""
    for features in sizes.features:
        residual, x = started(residual_flow(features, sizes.blocks), sizes.rows, features)
        spline, _ = started(spline_flow(features, sizes.blocks), 2, features)
        flows = [residual, spline]
        losses = {"no": [nll(flow) for flow in flows]}
        with compiling(len(flows)):
            losses |= {"yes": [nll(torch.compile(flow, backend=sizes.backend)) for flow in flows]}
            for kind, (own, other) in losses.items():
                figure = steps_over(own, other, x, [residual, spline], sizes.rounds)
                setting = {"transforms": sizes.blocks, "rows": sizes.rows, "D": features, "compiled": kind}
                setting |= {"backend": sizes.backend} if kind == "yes" else {}
                yield "Training steps beside a spline flow", setting, {"ResidualFlow / zuko NSF": figure}


def normflows(sizes: Sizes) -> Iterator[Measurement]:
    """Normflows' own residual block by the default, of the same networks; torch.compile refuses the former."""
    features, widths, rows = max(sizes.features), (128, 128, 128), 2 * sizes.rows
    block, x = fp.ResidualTransform(fp.LipschitzMLP(features, widths)), torch.randn(rows, features)
    theirs = normflows_density(features, residual_block([features, *widths, features])[1:])

    def step() -> None:
        theirs.after_step()
        backward(nll(theirs), x)

    with compiling(1):
        own = {"no": loss_of([block]), "yes": torch.compile(loss_of([block]), backend=sizes.backend)}
        for kind, loss in own.items():
            steps: dict[str, Callable[[], object]] = {"theirs": step, "ours": partial(backward, loss, x)}
            times = settled(steps, [block, theirs], sizes.rounds)
            setting = {"D": features, "hidden": widths, "rows": rows, "ours compiled": kind}
            setting |= {"backend": sizes.backend} if kind == "yes" else {}
            figure = over(times["theirs"], times["ours"], total=True)
            yield "A residual block beside normflows'", setting, {"normflows / flowplug": figure}
