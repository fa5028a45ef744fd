"""Classification by an i-ResNet at several Lipschitz bounds, against the same net without one."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import flowplug as fp
from common.command import OptionError
from common.densities import nearest, size
from common.paired import estimate
from common.report import finite, markdown, shown
from common.runs import Config, Line, log_likelihoods, name_of
from common.trial import FAILURES
from images import pictures
from images.classifier import Classifier, Judged
from images.data import Images
from images.grid import Grid
from images.models import squeezes
from images.options import ClassifierOptions
from images.training import ImageRun

START = 500  # images to start from
INVERTED = 100  # images whose features are
PLAIN = "unconstrained"
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "lipswish": fp.LipSwish,
    "sine": fp.Sine,
    "sine-huber": fp.SineHuber,
}


class PlainBlock(fp.Transform):
    """``x + g(x)`` with any g: a block of a ResNet, which has no inverse, and of which no log-det is known."""

    event_dim = 3

    def __init__(self, channels: int, hidden: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.event_shape = (channels, None, None)
        self.g = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1),
            activation(),
            nn.Conv2d(hidden, hidden, 1),
            activation(),
            nn.Conv2d(hidden, channels, 3, padding=1),
        )

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        return x + self.g(x), x.new_zeros(x.shape[:-3])

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise fp.InverseNotAvailable("PlainBlock: x + g(x) without a bound on g has no inverse")


def net(images: Images, config: Config, hidden: int) -> fp.ComposedTransform:
    """The features of a net: blocks at the scale of the images once squeezed, and at the next where there is room."""
    channels, activation = images.event_shape[0], ACTIVATIONS[config["activation"]]
    parts: list[fp.Transform] = [fp.ActNorm(channels, event_dim=3)]
    for _ in range(max(1, squeezes(images, 2))):
        channels *= 4
        parts.append(fp.Squeeze(2))
        for _ in range(config["blocks"]):
            if config["bound"] is None:
                parts.append(PlainBlock(channels, hidden, activation))
            else:
                g = fp.LipschitzCNN(channels, (hidden, hidden), bound=config["bound"], activation=activation)
                parts.append(fp.ResidualTransform(g))
            parts.append(fp.ActNorm(channels, event_dim=3))
    return fp.ComposedTransform(*parts)


class ClassifierRun(ImageRun):
    """A run of a classifier."""

    density: Classifier
    averaged: Classifier

    def made(self) -> Classifier:
        """The net and its branch at the end, started from some of the images."""
        images, config = self.images, self.config

        def model(hidden: int) -> Classifier:
            stack = net(images, config, hidden)
            views = {f"transforms.{len(stack.transforms) - 1}": None}
            sizes = config["features"], config["pool"]
            return Classifier(stack, views, images.event_shape, images.classes, 0.0, *sizes)

        made = nearest(model, config["parameters"]).to(self.processes.device)
        made.start(self.some(START)[0])
        return made


@dataclass(frozen=True)
class Classify(ClassifierOptions):
    """Classification by an i-ResNet: error, certificate and inverted features, after equal steps or time.

    The net without a bound comes first; the others are compared with it, on the same images.
    """

    lr: float = 5e-3  # largest learning rate
    blocks: int = 6  # at each scale; of few, each as tame as its bound, little can be made
    bounds: tuple[float, ...] = (0.9, 0.7, 0.5)  # on the Lipschitz constant of each block's g
    activation: str = "elu"  # of all nets: elu, softplus, lipswish, sine, sine-huber

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise OptionError(f"--activation must be of {', '.join(ACTIVATIONS)}; got {self.activation}")
        if wrong := [bound for bound in self.bounds if not 0 < bound < 1]:
            raise OptionError(f"--bounds must be in (0, 1); got {wrong[0]}")
        super().__post_init__()

    def configs(self, common: Config) -> list[Config]:
        """The runs."""
        bounds: tuple[float | None, ...] = (None, *self.bounds)
        return [
            {**common, "model": PLAIN if bound is None else f"bound-{bound:g}", "bound": bound, "seed": seed}
            | {"activation": self.activation}
            for bound in bounds
            for seed in self.seeds
        ]

    def execute(self) -> None:
        """Trains and reports."""
        Grid(self, configs=self.configs, kind=ClassifierRun, measured=self.measured, table=table, draw=draw).execute()

    def measured(self, run: ClassifierRun) -> Line:
        """What a run is judged by; draws what comes back of features, too."""
        found = run.tested(*run.test, by=Judged(run.averaged, density=False))
        stack, x = run.averaged.stack, run.test[0][:INVERTED]
        back = inverted(stack, x)
        if back is not None and run.processes.rank == 0:
            pairs = torch.cat([x[: pictures.COLUMNS], back[: pictures.COLUMNS]])
            pictures.save(pairs, self.out / f"{name_of(run.config)}.reconstructions.png")
        residual = [part for part in stack.modules() if isinstance(part, fp.ResidualTransform)]
        with torch.no_grad():
            bounds = [float(fp.lipschitz_bound(part.g).value) for part in residual]
        return {
            **run.spent,
            "parameters": size(run.density),
            "error": 1 - float(found[:, 2].mean()),
            "log_likelihood_of_labels": finite(float(found[:, 1].mean())),
            "certificate": max(bounds, default=None),
            "inverse_error": None if back is None else finite(float((back - x).abs().max())),
        }


@torch.no_grad()
def inverted(stack: fp.Transform, x: Tensor) -> Tensor | None:
    """The images that have the features of ``x``; None where a layer has no inverse."""
    stack.eval()
    with suppress(*FAILURES, fp.InverseNotAvailable), fp.no_logdet():
        images: Tensor = stack.inverse(stack(x)[0])[0]
        return images
    return None


def table(lines: Sequence[Line], out: Path) -> str:
    """The results as a Markdown table; differences are paired, from the net without a bound of the same seed."""
    columns = [
        "data", "net", "seed", "error, % ± 2 s.e.", "difference", "largest bound", "features inverted", "parameters",
        "steps", "steps/s",
    ]  # fmt: skip
    rows, plain = list[list[object]](), dict[tuple[str, int], Tensor]()
    for line in lines:
        config = line["config"]
        key, values = (config["data"], config["seed"]), log_likelihoods(config, out)
        head = [config["data"], config["model"], config["seed"]]
        if "failed" in line or values is None:
            rows.append([*head, line.get("failed", "without its values"), *[""] * 6])
            continue
        errors = 100 * (1 - values[:, 2])
        gain = estimate([errors - plain[key]], "+") if key in plain else ""
        plain.setdefault(key, errors)
        forms = {
            "certificate": ".4f",
            "inverse_error": ".0e",
            "parameters": ",",
            "steps": "d",
            "steps_per_second": ".1f",
        }
        rows.append([*head, estimate([errors]), gain, *(shown(line[name], form) for name, form in forms.items())])
    return markdown(columns, rows)


def draw(lines: Sequence[Line], out: Path) -> None:
    """The learning curves."""
    pictures.curves(lines, out / "curves.png", "validation: log p(y | x), nats", lambda _, x: x)
