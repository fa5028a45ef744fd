"""Measures dense flows: time and memory of a training step against the width, and learning curves from equal starts.

Time: CPU seconds of forward and backward pass of the log-likelihood, as ratios to the same layers without any log-det
(Figure 1, left, of Gresele et al. 2020). Memory: peak resident memory beyond the bare process, one process each,
against parameters, gradients and activations (their Figure 4). Learning: gradient descent on the whole data from the
same ten starts (their Figure 1, right).

    python examples/benchmarks/dense.py
    python examples/benchmarks/dense.py --features 64 256 --rounds 5
"""

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import make_moons
from torch import Tensor, nn
from tqdm import tqdm

import flowplug as fp

BATCH, LAYERS, HIDDEN_ACTIVATION = 100, 2, fp.SmoothLeakyReLU(0.3)


def dense_flow(features: int, gradient: fp.Relative | fp.TransposedRelative | fp.Euclidean, value: object) -> nn.Module:
    """Dense transforms, the last without activation."""
    activations = [HIDDEN_ACTIVATION] * (LAYERS - 1) + [None]
    return fp.ComposedTransform(
        *(fp.DenseTransform(features, activation=a, gradient=gradient, value=value) for a in activations)
    )


def no_log_det(flow: fp.ComposedTransform, x: Tensor) -> Tensor:
    """The layers alone."""
    for part in flow.transforms:
        x = nn.functional.linear(x, part.weight, part.bias)
        x = x if part.activation is None else part.activation.value(x)
    return x.square().sum(1) / 2


def slogdet(flow: fp.ComposedTransform, x: Tensor) -> Tensor:
    """The ordinary gradient, autograd through ``torch.linalg.slogdet`` of every matrix."""
    ladj = torch.zeros(len(x))
    for part in flow.transforms:
        x = nn.functional.linear(x, part.weight, part.bias)
        ladj = ladj + torch.linalg.slogdet(part.weight).logabsdet
        if part.activation is not None:
            x, other = part.activation(x)
            ladj = ladj + other
    return x.square().sum(1) / 2 - ladj


def jacobian(flow: fp.ComposedTransform, x: Tensor) -> Tensor:
    """Autograd through the explicit Jacobian of every sample."""

    def layers(x: Tensor) -> tuple[Tensor, Tensor]:
        for part in flow.transforms:
            x = nn.functional.linear(x, part.weight, part.bias)
            x = x if part.activation is None else part.activation.value(x)
        return x, x

    jacobians, y = torch.func.vmap(torch.func.jacrev(layers, has_aux=True))(x)
    return y.square().sum(1) / 2 - torch.linalg.slogdet(jacobians).logabsdet


def ours(flow: fp.ComposedTransform, x: Tensor) -> Tensor:
    """The transforms as they are."""
    y, ladj = flow(x)
    return y.square().sum(1) / 2 - ladj


METHODS: dict[str, tuple[Callable[..., Tensor], object, object]] = {
    "no log-det": (no_log_det, fp.Relative(), fp.ExactValue()),
    "Relative, Deferred": (ours, fp.Relative(), fp.Deferred(every=100)),
    "Relative, ExactValue": (ours, fp.Relative(), fp.ExactValue()),
    "TransposedRelative, Deferred": (ours, fp.TransposedRelative(), fp.Deferred(every=100)),
    "Euclidean": (ours, fp.Euclidean(), fp.ExactValue()),
    "slogdet by autograd": (slogdet, fp.Relative(), fp.ExactValue()),
    "Jacobian by autograd": (jacobian, fp.Relative(), fp.ExactValue()),
}


def stepper(method: str, features: int) -> Callable[[], None]:
    """Returns what computes one gradient."""
    loss, gradient, value = METHODS[method]
    flow, x = dense_flow(features, gradient, value), torch.randn(BATCH, features)

    def step() -> None:
        flow.zero_grad()
        loss(flow, x).mean().backward()

    return step


def seconds(features: int, rounds: int, methods: list[str]) -> dict[str, list[float]]:
    """CPU time of each method, round by round, after two that warm up."""
    steps = {method: stepper(method, features) for method in methods}
    times: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(rounds + 2):
        for method, step in steps.items():
            start = time.process_time()
            step()
            times[method].append(time.process_time() - start)
    return {method: values[2:] for method, values in times.items()}


def resident(field: str) -> int:
    """Resident memory of this process in bytes: ``VmRSS`` now, or ``VmHWM`` at its peak (Linux)."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])


def peak(method: str, features: int) -> int:
    """Peak memory in bytes of two steps, beyond that of this process before."""
    stepper(method, 4)()  # loads what torch loads at first use
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
    step = stepper(method, features)
    for _ in range(2):
        step()
    return resident("VmHWM") - before


def cost(options: argparse.Namespace, axes: np.ndarray) -> None:
    """Prints and draws time and memory."""
    times: dict[str, dict[int, list[float]]] = {method: {} for method in METHODS}
    memory: dict[str, dict[int, float]] = {method: {} for method in METHODS}
    for features in tqdm(options.features, desc="widths"):
        methods = [m for m in METHODS if m != "Jacobian by autograd" or features <= options.largest_jacobian]
        for method, values in seconds(features, options.rounds, methods).items():
            times[method][features] = values
        for method in methods:
            command = [sys.executable, __file__, "--peak", method, "--features", str(features)]
            memory[method][features] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(
        f"{LAYERS} layers, batch {BATCH}, one thread, {options.rounds} rounds: ms, ratio [quartiles] to no log-det, MiB"
    )
    for method in METHODS:
        for features, values in times[method].items():
            ratios = [a / b for a, b in zip(values, times["no log-det"][features], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(
                f"{method:30} D = {features:5} {1e3 * statistics.median(values):10.2f} "
                f"{middle:8.2f} [{low:.2f}, {high:.2f}] {memory[method][features] / 2**20:8.1f}"
            )
        axes[0].loglog(times[method].keys(), [statistics.median(v) for v in times[method].values()], ".-", label=method)
        axes[1].loglog(memory[method].keys(), [v / 2**20 for v in memory[method].values()], ".-", label=method)
    wide = [features for features in options.features if features >= 512]
    if len(wide) > 1:
        relative = [statistics.median(times["Relative, Deferred"][features]) for features in wide]
        slope = np.polyfit(np.log(wide), np.log(relative), 1)[0]
        print(f"time of Relative, Deferred grows as D^{slope:.2f} from D = {wide[0]} to {wide[-1]}")
    for features in options.features:
        # Two copies of every matrix; inputs, outputs, and what activation, slope and base keep of each layer.
        needed = 4 * (2 * LAYERS * features * (features + 1) + (6 * LAYERS + 2) * BATCH * features)
        share = memory["Relative, Deferred"][features] / needed
        print(f"D = {features:5}: {share:.2f} of parameters + gradients + activations ({needed / 2**20:.1f} MiB)")
    axes[0].set(xlabel="D", ylabel="CPU seconds of a gradient")
    axes[1].set(xlabel="D", ylabel="MiB")
    axes[0].legend(fontsize="small")


def learning(options: argparse.Namespace, axis: plt.Axes) -> None:
    """Prints and draws the loss of gradient descent from equal starts."""
    x = torch.tensor(make_moons(1000, noise=0.1, random_state=0)[0], dtype=torch.float32)
    x = (x - x.mean(0)) / x.std(0)
    final: dict[str, list[float]] = {}
    for color, (name, gradient) in zip(
        ("C0", "C1"), {"Euclidean": fp.Euclidean(), "Relative": fp.Relative()}.items(), strict=True
    ):
        for seed in tqdm(range(10), desc=name):
            torch.manual_seed(seed)
            flow = dense_flow(2, gradient, fp.ExactValue())
            optimizer = torch.optim.SGD(flow.parameters(), options.lr)
            losses = []
            for _ in range(options.epochs):
                loss = ours(flow, x).mean() + math.log(2 * math.pi)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            axis.plot(losses, color=color, alpha=0.6, label=name if seed == 0 else None)
            final.setdefault(name, []).append(losses[-1])
    print(f"negative log-likelihood (nats) after {options.epochs} steps of gradient descent from ten starts:")
    for name, values in final.items():
        print(f"{name:10}" + "".join(f"{value:8.4f}" for value in values))
    axis.set(xlabel="epoch", ylabel="negative log-likelihood, nats", xscale="log")
    axis.legend()


def main() -> None:
    """Measures, prints and plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--largest-jacobian", type=int, default=256, help="largest D for the explicit Jacobian")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--out", type=Path, default=Path("dense_cost.png"))
    parser.add_argument("--peak", choices=METHODS, help="print the peak memory of this method in bytes, and stop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.peak:
        print(peak(options.peak, options.features[0]))
        return
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    learning(options, axes[2])
    cost(options, axes)
    figure.savefig(options.out, dpi=120)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
