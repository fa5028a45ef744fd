"""What evaluation and sampling cost."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import flowplug as fp
import flowplug_nflows
from benchmarks.costs.flows import Sizes, residual_flow, spline_flow, started
from benchmarks.measurements import Figure, Measurement, median, over
from common.clock import paired
from common.densities import of_nflows
from common.memory import peak_alone


@torch.no_grad()
def log_likelihoods(sizes: Sizes) -> Iterator[Measurement]:
    """Of residual transforms by those of as many spline transforms of zuko."""
    for features in sizes.features:
        residual, x = started(residual_flow(features, sizes.blocks), sizes.rows, features)
        spline, _ = started(spline_flow(features, sizes.blocks), 2, features)
        calls = {name: partial(flow.eval(), x) for name, flow in (("residual", residual), ("spline", spline))}
        times = paired(calls, sizes.rounds)
        setting = {"transforms": sizes.blocks, "rows": sizes.rows, "D": features}
        figures = {
            "ResidualFlow / zuko NSF": over(times["residual"], times["spline"]),
            "ResidualFlow": median([1e6 * time / len(x) for time in times["residual"]], "µs a row"),
        }
        yield "Log-likelihoods beside a spline flow", setting, figures


@torch.no_grad()
def evaluate(rows: int) -> None:
    """One pass of a block in eval mode."""
    fp.ResidualTransform(fp.LipschitzMLP(64)).eval()(torch.randn(rows, 64))


def memory(sizes: Sizes) -> Iterator[Measurement]:
    """The peak of evaluating many rows in one block, in a process of its own."""
    peak = peak_alone(partial(evaluate, 2), partial(evaluate, sizes.large))
    yield "Memory of an evaluation", {"D": 64, "rows": sizes.large}, {"peak": Figure(peak, "MiB")}


@torch.no_grad()
def samples(sizes: Sizes) -> Iterator[Measurement]:
    """Drawn by nflows from eight blocks, with the log-dets that it drops and without."""
    features = max(sizes.features)
    flow = flowplug_nflows.ResidualFlow(features, 128, 8, 1)
    started(of_nflows(flow), 2, features)
    draw = partial(flow.eval().sample, sizes.samples)

    def without() -> Tensor:
        with fp.no_logdet():
            samples: Tensor = draw()
        return samples

    times = paired({"plain": draw, "without": without}, sizes.rounds)
    figures = {"sample / without log-dets": over(times["plain"], times["without"])}
    yield "Samples of nflows flows", {"D": features, "blocks": 8, "samples": sizes.samples}, figures


@torch.no_grad()
def norms(sizes: Sizes) -> Iterator[Measurement]:
    """The share of a pass without log-det that is not the network itself, weights unchanged since the last."""
    channels, side = sizes.images
    g, x = fp.LipschitzCNN(3, (channels, channels)), torch.randn(16, 3, side, side)
    transform, branch = fp.ResidualTransform(g).eval(), fp.Branch.of(g, None)

    def whole() -> Tensor:
        with fp.no_logdet():
            y: Tensor = transform(x)[0]
        return y

    calls: dict[str, Callable[[], object]] = {
        "pass": whole,
        "network": lambda: x + branch(x),
        "weights": g.bounded_weights,
        "bound": lambda: fp.lipschitz_bound(g),
    }
    times = paired(calls, max(sizes.rounds // 5, 2))
    milliseconds = {name: median([1e3 * time for time in values], "ms") for name, values in times.items()}
    total, network = milliseconds["pass"].value, milliseconds["network"].value
    figures = {"pass": milliseconds["pass"], "the network alone": milliseconds["network"]}
    figures |= {"bounded weights": milliseconds["weights"], "certificate": milliseconds["bound"]}
    figures |= {"share of the rest": Figure(100 * (1 - network / total), "%")}
    setting = {"images": len(x), "channels": (3, channels, channels, 3), "side": side}
    yield "Norms in an evaluation of images", setting, figures
