"""Hybrid models: a density and a classifier by its features at once (Tables 4 and 5)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

import flowplug as fp
from common.command import among
from common.densities import nearest, size
from common.paired import estimate
from common.report import finite, markdown, shown
from common.runs import Config, Line, log_likelihoods
from images import pictures
from images.classifier import Classifier, Judged
from images.grid import Grid
from images.options import ClassifierOptions
from images.stacks import STACKS
from images.summary import summary
from images.training import ImageRun

WEIGHTS: dict[str, Callable[[int], float]] = {  # lambda, of the dimension D
    "0": lambda _: 0.0,
    "1-over-D": lambda dimension: 1 / dimension,
    "1": lambda _: 1.0,
}


class HybridRun(ImageRun):
    """A run of a hybrid model."""

    density: Classifier
    averaged: Classifier

    def made(self) -> Classifier:
        """The model, started from some of the images."""
        images, config = self.images, self.config
        kind = STACKS[config["block"]]
        weight = WEIGHTS[config["weight"]](images.train.pixels[0].numel())

        def model(hidden: int) -> Classifier:
            stack = kind.make(images, config, hidden)
            sizes = config["features"], config["pool"]
            return Classifier(stack, kind.views(stack, images), images.event_shape, images.classes, weight, *sizes)

        made = nearest(model, config["parameters"]).to(self.processes.device)
        self.start(made.start, kind.start)
        return made


@dataclass(frozen=True)
class Hybrid(ClassifierOptions):
    """Hybrid models: log p(x), with a weight lambda, and a classifier by the features of the flow.

    Accuracy and bits/dim on test images after equal time or steps; the first of --stacks is what the others are
    compared with, at the same weight.
    """

    stacks: tuple[str, ...] = tuple(STACKS)  # blocks to train
    weights: tuple[str, ...] = tuple(WEIGHTS)  # of log p(x)

    def __post_init__(self) -> None:
        among(self, "stacks", STACKS)
        among(self, "weights", WEIGHTS)
        super().__post_init__()

    def configs(self, common: Config) -> list[Config]:
        """The runs."""
        return [
            {**common, "model": f"{block}-lambda-{weight}", "block": block, "weight": weight, "seed": seed}
            for weight in self.weights
            for block in self.stacks
            for seed in self.seeds
        ]

    def execute(self) -> None:
        """Trains and reports."""
        Grid(
            self,
            configs=self.configs,
            kind=HybridRun,
            measured=measured,
            table=table,
            summary=partial(summary, quantities=QUANTITIES, group=lambda config: str(config["weight"])),
            draw=draw,
        ).execute()


def measured(run: HybridRun) -> Line:
    """What a run is judged by."""
    found = run.tested(*run.test, by=Judged(run.averaged, density=True))
    images = run.images
    about = {"event_shape": list(images.event_shape), "levels": images.levels}
    return {
        **run.spent,
        **about,
        "parameters": size(run.density),
        "bits_per_dim": finite(float(bits(about, found).mean())),
        "log_likelihood_of_labels": finite(float(found[:, 1].mean())),
        "accuracy": float(found[:, 2].mean()),
    }


def accuracy(line: Line, values: Tensor) -> Tensor:
    """Of each image, in per cent."""
    del line
    return 100 * values[:, 2]


def bits(line: Line, values: Tensor) -> Tensor:
    """Of each image, a dimension."""
    return fp.bits_per_dim(values[:, 0], line["event_shape"], levels=line["levels"])


QUANTITIES = {"accuracy, %": accuracy, "bits/dim": bits}


def table(lines: Sequence[Line], out: Path) -> str:
    """The results as a Markdown table, a row for each run."""
    columns = ["data", "lambda", "blocks", "seed", *QUANTITIES, "parameters", "steps", "steps/s"]
    rows = list[list[object]]()
    for line in lines:
        config, values = line["config"], log_likelihoods(line["config"], out)
        head = [config["data"], config["weight"], config["block"], config["seed"]]
        if "failed" in line or values is None:
            rows.append([*head, line.get("failed", "without its values"), *[""] * 4])
            continue
        cells = [estimate([quantity(line, values)]) for quantity in QUANTITIES.values()]
        speed = shown(line["steps_per_second"], ".1f")
        rows.append([*head, *cells, f"{line['parameters']:,}", line["steps"], speed])
    return markdown(columns, rows)


def draw(lines: Sequence[Line], out: Path) -> None:
    """The learning curves."""
    label = "validation: lambda log p(x) + log p(y | x), nats"
    pictures.curves(lines, out / "curves.png", label, panel=lambda config: f"lambda = {config['weight']}")
