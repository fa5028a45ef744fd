"""Measures dense flows: time and memory of a training step against the width, and learning curves from equal starts.

Time: CPU seconds of forward and backward pass of the log-likelihood, as ratios to the same layers without any log-det
(Figure 1, left, of Gresele et al. 2020). Memory: peak resident memory beyond the bare process, one process each,
against parameters, gradients and activations (their Figure 4). Learning: gradient descent on the whole data from the
same ten starts (their Figure 1, right).

    python examples/benchmarks/dense.py
    python examples/benchmarks/dense.py --features 64 256 --rounds 5
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from sklearn.datasets import make_moons
from torch import Tensor, nn
from tqdm import tqdm

import flowplug as fp
from benchmarks.measurements import Figure, Measurement, Recorded, exponent, median, over, run
from common.clock import paired
from common.densities import log_prob
from common.memory import peak_alone
from common.training import Options, Training, constant, nll

BATCH, LAYERS, ACTIVATION = 100, 2, fp.SmoothLeakyReLU(0.3)
Gradient = fp.Euclidean | fp.Relative | fp.TransposedRelative
Loss = Callable[[fp.ComposedTransform, Tensor], Tensor]


@dataclass(frozen=True)
class Settings(Recorded):
    """What to measure."""

    features: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    largest_jacobian: int = 256  # largest D for the explicit Jacobian
    rounds: int = 7
    epochs: int = 2000
    lr: float = 0.1  # of gradient descent


def dense_flow(features: int, gradient: Gradient, value: fp.ExactValue | fp.Deferred) -> fp.ComposedTransform:
    """Dense transforms, the last without activation."""
    activations = [ACTIVATION] * (LAYERS - 1) + [None]
    parts = (fp.DenseTransform(features, activation=a, gradient=gradient, value=value) for a in activations)
    return fp.ComposedTransform(*parts)


def parts(flow: fp.ComposedTransform) -> Iterator[fp.DenseTransform]:
    """The transforms."""
    return (part for part in flow.transforms if isinstance(part, fp.DenseTransform))


def layers(flow: fp.ComposedTransform, x: Tensor) -> Tensor:
    """The layers alone."""
    for part in parts(flow):
        x = nn.functional.linear(x, part.weight, part.bias)
        x = x if part.activation is None else ACTIVATION.value(x)
    return x


def no_log_det(flow: fp.ComposedTransform, x: Tensor) -> Tensor:
    """What every other loss is compared with."""
    return layers(flow, x).square().sum(1) / 2


def slogdet(flow: fp.ComposedTransform, x: Tensor) -> Tensor:
    """The ordinary gradient, autograd through ``torch.linalg.slogdet`` of every matrix."""
    ladj = torch.zeros(len(x))
    for part in parts(flow):
        x = nn.functional.linear(x, part.weight, part.bias)
        ladj = ladj + torch.linalg.slogdet(part.weight).logabsdet
        if part.activation is not None:
            x, other = part.activation(x)
            ladj = ladj + other
    return x.square().sum(1) / 2 - ladj


def jacobian(flow: fp.ComposedTransform, x: Tensor) -> Tensor:
    """Autograd through the explicit Jacobian of every sample."""

    def twice(x: Tensor) -> tuple[Tensor, Tensor]:
        y = layers(flow, x)
        return y, y

    jacobians, y = torch.func.vmap(torch.func.jacrev(twice, has_aux=True))(x)
    loss: Tensor = y.square().sum(1) / 2 - torch.linalg.slogdet(jacobians).logabsdet
    return loss


def ours(flow: fp.ComposedTransform, x: Tensor) -> Tensor:
    """The transforms as they are."""
    return -log_prob(flow, x)


METHODS: dict[str, tuple[Loss, Gradient, fp.ExactValue | fp.Deferred]] = {
    "no log-det": (no_log_det, fp.Relative(), fp.ExactValue()),
    "Relative, Deferred": (ours, fp.Relative(), fp.Deferred(every=100)),
    "Relative, ExactValue": (ours, fp.Relative(), fp.ExactValue()),
    "TransposedRelative, Deferred": (ours, fp.TransposedRelative(), fp.Deferred(every=100)),
    "Euclidean": (ours, fp.Euclidean(), fp.ExactValue()),
    "slogdet by autograd": (slogdet, fp.Relative(), fp.ExactValue()),
    "Jacobian by autograd": (jacobian, fp.Relative(), fp.ExactValue()),
}


def stepper(method: str, features: int) -> Callable[[], None]:
    """Computes one gradient."""
    loss, gradient, value = METHODS[method]
    flow, x = dense_flow(features, gradient, value), torch.randn(BATCH, features)

    def step() -> None:
        flow.zero_grad()
        torch.autograd.backward(loss(flow, x).mean())

    return step


def two_steps(method: str, features: int) -> None:
    """Computes two gradients."""
    step = stepper(method, features)
    step()
    step()


def cost(settings: Settings) -> Iterator[Measurement]:
    """Time and memory, and how the time grows."""
    wide = list[tuple[float, float]]()
    for features in tqdm(settings.features, desc="widths"):
        methods = [m for m in METHODS if m != "Jacobian by autograd" or features <= settings.largest_jacobian]
        times = paired({method: stepper(method, features) for method in methods}, settings.rounds)
        # Two copies of every matrix; inputs, outputs, and what activation, slope and base keep of each layer.
        needed = 4 * (2 * LAYERS * features * (features + 1) + (6 * LAYERS + 2) * BATCH * features) / 2**20
        for method in methods:
            peak = peak_alone(partial(two_steps, method, 4), partial(two_steps, method, features))
            figures = {
                "time": median([1e3 * time for time in times[method]], "ms"),
                "over no log-det": over(times[method], times["no log-det"]),
                "memory": Figure(peak, "MiB"),
                "over parameters, gradients and activations": Figure(peak / needed, "ratio"),
            }
            setting = {"layers": LAYERS, "rows": BATCH, "gradient": method, "D": features}
            yield "Cost of a dense training step", setting, figures
            if features >= 512 and method == "Relative, Deferred":
                wide.append((features, figures["time"].value))
    if len(wide) > 1:
        setting = {"gradient": "Relative, Deferred", "D": "512 and more"}
        yield "Growth of a dense training step", setting, {"exponent of D": exponent(*zip(*wide, strict=True))}


def learning(settings: Settings) -> Iterator[Measurement]:
    """The loss of gradient descent from equal starts."""
    x = torch.tensor(make_moons(1000, noise=0.1, random_state=0)[0], dtype=torch.float32)
    x = (x - x.mean(0)) / x.std(0)
    for gradient in (fp.Euclidean(), fp.Relative()):
        name = type(gradient).__name__
        for seed in tqdm(range(10), desc=name):
            torch.manual_seed(seed)
            flow = dense_flow(2, gradient, fp.ExactValue())
            options = Options(steps=settings.epochs, lr=settings.lr, schedule=constant)
            training = Training(flow, nll(partial(log_prob, flow)), lambda _: x, options)
            training.optimizer = torch.optim.SGD(flow.parameters(), settings.lr, fused=True)
            losses = list(map(float, training))
            steps = sorted({min(10**k, len(losses)) for k in range(1, 5)})
            figures = {f"loss of step {step}": Figure(losses[step - 1], "nats") for step in steps}
            yield "Gradient descent from equal starts", {"gradient": name, "start": seed}, figures


def measure(settings: Settings) -> Iterator[Measurement]:
    """Both."""
    yield from learning(settings)
    yield from cost(settings)


if __name__ == "__main__":
    run(measure, Settings, __doc__)
