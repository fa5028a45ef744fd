"""What can be counted: graphs, operator calls and recompilations."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import normflows as nf
import torch
import zuko
from torch import Tensor, nn
from torch._dynamo.utils import counters

import flowplug as fp
import flowplug_nflows
import flowplug_normflows
import flowplug_zuko
from benchmarks.costs.flows import Sizes, backward, frames, residual_flow, spline_flow, started
from benchmarks.measurements import Figure, Measurement
from common.clock import seconds
from common.densities import Density, nflows_density, of_nflows, of_normflows, of_zuko, zuko_density
from common.layers import affine_coupling, spline_coupling
from common.training import Options, Training, nll, rows_of
from flowplug import hosts

STEPS = 20  # in which operators are counted, as lengths of series vary
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "mv", "addmv")


def residual(logdet: fp.LogDet, g: Callable[[int], nn.Module] = fp.LipschitzMLP) -> Callable[[int], fp.Transform]:
    """A residual transform with one log-det in both modes."""
    return lambda features: fp.ResidualTransform(g(features), logdet=logdet, eval_logdet=logdet)


EVENTS: dict[str, Callable[[int], fp.Transform]] = {
    "residual, exact": residual(fp.ExactLogDet()),
    "residual, Krylov": residual(fp.Krylov()),
    "residual, power series": residual(fp.PowerSeries()),
    "residual, Gram": residual(fp.Krylov(), partial(fp.LipschitzMLP, norm=fp.Gram())),
    "residual, DenseNet": residual(fp.Krylov(), fp.LipschitzDenseNet),
    "dense": fp.DenseTransform,
    "whitening": fp.Whitening,
    "ActNorm": fp.ActNorm,
    "3 x (whitening, dense, residual), ActNorm": lambda features: fp.ResidualStack(features, 3),
}
IMAGES: dict[str, Callable[[int], fp.Transform]] = {  # of channels
    "residual, CNN": residual(fp.Krylov(), partial(fp.LipschitzCNN, hidden_channels=(16, 16))),
    "circular convolution": fp.CircularConv2d,
}


def with_residual(flow: zuko.lazy.Flow, features: int) -> Density:
    """A flow of zuko with a residual transform before its own."""
    return zuko_density(features, [flowplug_zuko.ResidualTransform(features), *flow.transform.transforms])


def zukos(kind: Callable[..., zuko.lazy.Flow], features: int) -> zuko.lazy.Flow:
    """A ready-made flow."""
    return kind(features, transforms=3, hidden_features=(64, 64))


def nflows_spline(features: int, *more: nn.Module) -> Density:
    """Spline couplings of nflows behind other layers."""
    layers = [layer for i in range(3) for layer in spline_coupling(features, 64, i)]
    return nflows_density(features, [*more, *layers])


def normflows_coupling(features: int, *more: nn.Module) -> Density:
    """Affine couplings of normflows behind other layers, from data to latent."""
    layers = [layer for i in range(3) for layer in affine_coupling(features, 64, i)]
    base = nf.distributions.DiagGaussian(features, trainable=False)
    return of_normflows(nf.NormalizingFlow(base, [*layers, *more]))


# A host's flow with a residual transform, and the host's own alone.
HOSTS: dict[str, tuple[Callable[[int], Density], Callable[[int], Density] | None]] = {
    "zuko NSF + residual": (
        lambda d: with_residual(zukos(zuko.flows.NSF, d), d),
        lambda d: of_zuko(zukos(zuko.flows.NSF, d)),
    ),
    "zuko Real NVP + residual": (
        lambda d: with_residual(zukos(zuko.flows.RealNVP, d), d),
        lambda d: of_zuko(zukos(zuko.flows.RealNVP, d)),
    ),
    "nflows RQ-NSF + residual": (
        lambda d: nflows_spline(d, flowplug_nflows.ResidualTransform(d, 128)),
        nflows_spline,
    ),
    "normflows Real NVP + residual": (
        lambda d: normflows_coupling(d, flowplug_normflows.NormflowsFlow(fp.ResidualTransform(fp.LipschitzMLP(d)))),
        normflows_coupling,
    ),
    "zuko ResidualFlow": (lambda d: residual_flow(d, 3), None),
    "nflows ResidualFlow": (lambda d: of_nflows(flowplug_nflows.ResidualFlow(d, 128, 3, 1)), None),
    "normflows ResidualFlow": (lambda d: of_normflows(flowplug_normflows.ResidualFlow(d)), None),
}

NAMES = (*EVENTS, *IMAGES, *HOSTS)


def graphs_of(module: nn.Module, x: Tensor, *, training: bool) -> int:
    """The graphs that torch.compile makes of a module's forward, after its start from data."""
    with hosts.starting(module):
        module(x)
    torch.compiler.reset()
    module.train(training)
    with nullcontext() if training else torch.no_grad():
        count: int = torch._dynamo.explain(module)(x).graph_count
    return count


def graphs(sizes: Sizes) -> Iterator[Measurement]:
    """Of every transform, and of hosts' flows beside the same without ours."""
    features = max(sizes.features)
    x, images = torch.randn(sizes.rows, features), torch.randn(16, 3, 8, 8)
    parts: list[tuple[str, Callable[[], nn.Module], Callable[[], nn.Module] | None, Tensor]] = []
    parts += [(name, partial(make, features), None, x) for name, make in EVENTS.items()]
    parts += [(name, partial(make, 3), None, images) for name, make in IMAGES.items()]
    for name, (make, alone) in HOSTS.items():
        parts.append((name, partial(make, features), alone and partial(alone, features), x))
    for name, build, plain, batch in parts:
        if sizes.flows and name not in sizes.flows:
            continue
        for mode in ("training", "evaluation"):
            figures: dict[str, Figure | float] = {"graphs": graphs_of(build(), batch, training=mode == "training")}
            if plain is not None:
                figures |= {"of the host alone": graphs_of(plain(), batch, training=mode == "training")}
            yield "Graphs under torch.compile", {"D": features, "of": name, "mode": mode}, figures


def operators(sizes: Sizes) -> Iterator[Measurement]:
    """Calls of torch's operators, those within others included, in forward and backward of a flow."""
    for features in sizes.features:
        for name, make in (("ResidualFlow", residual_flow), ("zuko NSF", spline_flow)):
            density, x = started(make(features, sizes.blocks), sizes.rows, features)
            counts = [calls(density, x) for _ in range(2 + STEPS)][2:]
            figures = {
                what: Figure(sum(values) / STEPS, least=min(values), most=max(values))
                for what, values in zip(("calls", "matrix products"), zip(*counts, strict=True), strict=True)
            }
            setting = {"transforms": sizes.blocks, "rows": sizes.rows, "flow": name, "D": features}
            yield "Operator calls of a training step", setting, figures


def calls(density: Density, x: Tensor) -> tuple[int, int]:
    """Of all operators in one step, and of matrix products."""
    density.zero_grad()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        backward(nll(density), x)
    events = {event.key: event.count for event in profile.key_averages() if event.key.startswith("aten::")}
    return sum(events.values()), sum(events.get(f"aten::{name}", 0) for name in PRODUCTS)


def recompilations(sizes: Sizes) -> Iterator[Measurement]:
    """After the first steps of training under torch.compile; the slowest step is by CPU time."""
    for features in sizes.features:
        density, _ = started(residual_flow(features, sizes.blocks), 2, features)
        torch.compiler.reset()
        counters.clear()
        loss = nll(torch.compile(density, backend=sizes.backend))
        options = Options(steps=sizes.steps, batch=sizes.rows, lr=1e-3, compile=True)
        training = Training(density, loss, rows_of(torch.randn(10_000, features)), options)
        training.warm_up()
        before, times = frames(), list[float]()
        start = seconds()
        for _ in training:
            times.append(seconds() - start)
            start = seconds()
        figures: dict[str, Figure | float] = {
            "before": before,
            "after": frames() - before,
            "slowest step": Figure(max(times) / sorted(times)[len(times) // 2], "of the median"),
        }
        setting: dict[str, Any] = {"flow": "ResidualFlow", "transforms": sizes.blocks, "rows": sizes.rows}
        yield "Recompilations", {**setting, "D": features, "steps": sizes.steps, "backend": sizes.backend}, figures
