"""Density estimation: bits/dim of residual flows as published and as recommended, and of Glow (Tables 2 and 3)."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import flowplug as fp
from common.command import among, not_negative
from common.paired import estimate
from common.report import finite, markdown, shown
from common.runs import Config, Line, log_likelihoods, name_of
from common.trial import outcome
from images import pictures
from images.grid import Grid
from images.models import RECIPES
from images.options import ImageOptions
from images.summary import summary
from images.training import DensityRun

SAMPLES = 16  # drawn, timed, and sent to latent and back
PROTOCOL = fp.PowerSeries(terms=fp.Roulette(fp.Geometric(0.5), exact=20))  # the published one of evaluation
DEFAULTS = ("recommended", "published", "published-truncated", "glow", "glow+flowplug")


@dataclass(frozen=True)
class Density(ImageOptions):
    """Density estimation: bits/dim on test images after equal time or steps.

    The first of --models is what the others are compared with, on the same images. Of residual flows, --exact images
    are told how far what they were tested with, and the published unbiased estimate, are from the exact log-det.
    """

    models: tuple[str, ...] = DEFAULTS  # flows to train
    exact: int = 8  # test images with the exact log-det beside others; 0 for none

    def __post_init__(self) -> None:
        among(self, "models", RECIPES)
        super().__post_init__()
        not_negative(self, "exact")

    def configs(self, common: Config) -> list[Config]:
        """The runs."""
        return [
            {**common, "model": model, "seed": seed, "exact": self.exact}
            for model in self.models
            for seed in self.seeds
        ]

    def execute(self) -> None:
        """Trains and reports."""
        Grid(
            self,
            configs=self.configs,
            kind=DensityRun,
            measured=self.measured,
            table=table,
            summary=partial(summary, quantities={"bits/dim": in_bits}),
            draw=self.draw,
        ).execute()

    def measured(self, run: DensityRun) -> Line:
        """What a run is judged by; draws what it makes of images, too."""
        x = run.test[0]
        values, density = run.tested(x), run.averaged
        about = {"event_shape": list(run.images.event_shape), "levels": run.images.levels}
        judged, samples = outcome(density, values, x[:SAMPLES], SAMPLES)
        if run.processes.rank == 0:
            pictures.draw_flow(pictures.flow_of(density), samples, x[:SAMPLES], self.out, name_of(run.config))
        return {
            **run.spent,
            **judged,
            **about,
            "bits_per_dim": finite(float(in_bits(about, values).mean())),
            "log_dets": log_dets(density, x[: run.config["exact"]], about),
        }

    @staticmethod
    def draw(lines: Sequence[Line], out: Path) -> None:
        """The learning curves."""
        pictures.curves(lines, out / "curves.png", "validation, bits/dim", lambda line, x: float(in_bits(line, x)))


def in_bits(line: Line, values: Tensor | float) -> Tensor:
    """Log-likelihoods in nats as bits/dim, of the images that a line is about."""
    return fp.bits_per_dim(torch.as_tensor(values), line["event_shape"], levels=line["levels"])


def log_dets(density: torch.nn.Module, x: Tensor, about: Line) -> Line | None:
    """Bits/dim of images by the exact log-det, and by how much others miss that: mean and two standard errors.

    Of others there are the one the flow was tested with, and the published unbiased one. None where there are fewer
    than two images, or no part has a log-det to choose.
    """
    model = copy.deepcopy(density).eval()
    residual = [part for part in model.modules() if isinstance(part, fp.ResidualTransform)]
    if len(x) < 2 or not residual:
        return None
    found = list[Tensor]()
    for logdet in (None, PROTOCOL, fp.ExactLogDet()):
        for part in residual:
            part.eval_logdet = part.eval_logdet if logdet is None else logdet
        with torch.no_grad():
            found.append(in_bits(about, model(x)))
    *others, exact = found
    misses = [(other - exact).double() for other in others]
    errors = [[finite(float(m.mean())), finite(2 * float(m.std()) / math.sqrt(len(m)))] for m in misses]
    return {"exact": finite(float(exact.mean())), **dict(zip(("as_tested", "unbiased"), errors, strict=True))}


def table(lines: Sequence[Line], out: Path) -> str:
    """The results as a Markdown table, a row for each run."""
    columns = [
        "data", "model", "seed", "test, bits/dim ± 2 s.e.", "parameters", "steps", "steps/s", "peak MiB",
        f"{SAMPLES} samples, ms", "round trip", "exact, bits/dim", "as tested less that", "unbiased less that",
    ]  # fmt: skip
    rows = list[list[object]]()
    for line in lines:
        config, values = line["config"], log_likelihoods(line["config"], out)
        rows.append([config["data"], config["model"], config["seed"], *cells(line, values)])
    return markdown(columns, rows)


def cells(line: Line, values: Tensor | None) -> list[str]:
    """The measured columns of one row."""
    if "failed" in line:
        return [line["failed"], *[""] * 9]
    level = shown(line["bits_per_dim"], ".3f") if values is None else estimate([in_bits(line, values)])
    forms = {"steps_per_second": ".1f", "peak_memory_mib": ".0f", "sampling_ms": ".0f", "round_trip_error": ".0e"}
    rest = [shown(line[key], form) for key, form in forms.items()]
    found = line["log_dets"]
    if found is None:
        log_dets = [""] * 3
    else:
        pairs = found["as_tested"], found["unbiased"]
        misses = [f"{shown(mean, '+.4f')} ± {shown(error, '.4f')}" for mean, error in pairs]
        log_dets = [shown(found["exact"], ".4f"), *misses]
    return [level, f"{line['parameters']:,}", str(line["steps"]), *rest, *log_dets]
