"""Classification by an i-ResNet at several Lipschitz bounds, against the same net without one."""

from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import flowplug as fp
from common.command import OptionError, fractions
from common.densities import nearest, size
from common.paired import estimate
from common.report import finite, markdown, shown
from common.runs import Config, Line, log_likelihoods, name_of
from common.trial import FAILURES
from images import pictures
from images.classifier import Classifier, Judged
from images.grid import Grid
from images.nets import ACTIVATIONS, net
from images.options import ClassifierOptions
from images.summary import summary
from images.training import ImageRun

START = 500  # images to start from
INVERTED = 100  # images whose features are
PLAIN = "unconstrained"


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
        self.start(made.start, START)
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
        fractions(self, "bounds")
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
        Grid(
            self,
            configs=self.configs,
            kind=ClassifierRun,
            measured=self.measured,
            table=table,
            summary=partial(summary, quantities={"error, %": errors}),
            draw=draw,
        ).execute()

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
            # In double precision, which tells a bound that is exceeded from one that is rounded.
            bounds = [float(fp.lipschitz_bound(deepcopy(part.g).double())) for part in residual]
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


def errors(line: Line, values: Tensor) -> Tensor:
    """Of each image, in per cent."""
    del line
    return 100 * (1 - values[:, 2])


def table(lines: Sequence[Line], out: Path) -> str:
    """The results as a Markdown table, a row for each run."""
    columns = [
        "data", "net", "seed", "error, %", "largest bound", "features inverted", "parameters", "steps", "steps/s",
    ]  # fmt: skip
    rows = list[list[object]]()
    for line in lines:
        config, values = line["config"], log_likelihoods(line["config"], out)
        head = [config["data"], config["model"], config["seed"]]
        if "failed" in line or values is None:
            rows.append([*head, line.get("failed", "without its values"), *[""] * 5])
            continue
        forms = {"certificate": ".4f", "inverse_error": ".0e", "parameters": ",", "steps": "d"}
        forms |= {"steps_per_second": ".1f"}
        rows.append([*head, estimate([errors(line, values)]), *(shown(line[key], form) for key, form in forms.items())])
    return markdown(columns, rows)


def draw(lines: Sequence[Line], out: Path) -> None:
    """The learning curves."""
    pictures.curves(lines, out / "curves.png", "validation: log p(y | x), nats")
