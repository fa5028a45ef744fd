"""What the study writes: the results, a table of them, what flowplug's transforms gain, and a picture of that."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from common.gains import draw_summary
from common.paired import Estimate
from common.report import markdown, shown
from common.runs import Line
from common.study import Study, by_model
from variational.models import PLAIN

GAIN = "log2 of that ± 2 s.e."  # the column of a summary that the picture shows
LABEL = "effective draws per CPU second over those of the plain flow, log2, ± 2 s.e.: 1 is twice as many"
FORMS = {  # measured columns of the table, and what they are of
    "reverse KL": ("reverse_kl", ".3f"),
    "ESS": ("ess", ".1%"),
    "draws/s": ("draws_per_second", ",.0f"),
    "ESS/s": ("ess_per_second", ",.0f"),
    "acceptance": ("acceptance", ".1%"),
    "chain ESS": ("chain_ess", ".1%"),
    "chain ESS/s": ("chain_ess_per_second", ",.0f"),
    "forward KL": ("forward_kl", ".3g"),
    "ESS by exact draws": ("exact_ess", ".1%"),
    "parameters": ("parameters", ","),
    "steps": ("steps", ""),
    "seconds": ("seconds", ".1f"),
}
MEANS = ("reverse KL", "ESS", "draws/s", "acceptance", "chain ESS", "forward KL", "ESS by exact draws")  # of a summary


def table(lines: Sequence[Line]) -> str:
    """The results as a Markdown table, a row for each run."""
    columns = ["target", "model", "seed", "error of log Z ± s.e.", *FORMS]
    rows = [[line["config"][key] for key in ("data", "model", "seed")] + cells(line) for line in lines]
    return markdown(columns, rows)


def cells(line: Line) -> list[str]:
    """The measured columns of one row."""
    if "failed" in line:
        return [line["failed"], *[""] * len(FORMS)]
    level, spread = shown(line["log_z_error"], "+.4f"), shown(line["log_z_standard_error"], ".4f")
    return [f"{level} ± {spread}", *(shown(line[key], form) for key, form in FORMS.values())]


def summary(lines: Sequence[Line], _: Path) -> str:
    """Means over seeds as a Markdown table, and what flowplug's transforms gain: ratios of the same seeds.

    The error of log Z is that of each seed, and its mean with the error that the draws leave: it is far above that
    where flows have lost a part of the target. A ratio is the geometric mean over seeds, and so is its error.
    """
    columns = [
        "target", "model", "seeds", "ESS/s", "times plain's", GAIN,
        "chain ESS/s, times plain's", "chain ESS a draw, times plain's",
        "error of log Z ± 2 s.e.", "of each seed", *MEANS, "steps",
    ]  # fmt: skip
    done = by_model(lines)
    rows = list[list[object]]()
    for (data, model), runs in done.items():
        plain, own = done.get((data, PLAIN.get(model, "")), {}), list(runs.values())
        gain = compared(runs, plain, "ess_per_second")
        rows.append([
            data,
            model,
            " ".join(map(str, runs)),
            averaged(own, "ess_per_second", ",.0f"),
            times(gain),
            "" if gain is None else str(gain),
            times(compared(runs, plain, "chain_ess_per_second")),
            times(compared(runs, plain, "chain_ess")),
            log_z(own),
            " ".join(shown(line["log_z_error"], "+.3f") for line in own),
            *(averaged(own, *FORMS[name]) for name in MEANS),
            averaged(own, "steps", ".0f"),
        ])  # fmt: skip
    return markdown(columns, rows)


def compared(runs: dict[int, Line], plain: dict[int, Line], key: str) -> Estimate | None:
    """The mean over seeds of log2 of a ratio, and two standard errors, NaN of one seed; None where there is none."""
    pairs = [(line[key], plain[seed][key]) for seed, line in runs.items() if seed in plain]
    found = [math.log2(one / other) for one, other in pairs if one and other]
    if not found:
        return None
    return Estimate(mean(found), 2 * statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan)


def times(gain: Estimate | None) -> str:
    """The ratio, and the interval of two standard errors."""
    if gain is None:
        return ""
    low, high = (2 ** (gain.mean + sign * gain.error) for sign in (-1, 1))
    return f"{2**gain.mean:.3g}" if math.isnan(high) else f"{2**gain.mean:.3g} ({low:.3g} to {high:.3g})"


def log_z(lines: Sequence[Line]) -> str:
    """The mean error of log Z over seeds, and two standard errors as draws leave them."""
    pairs = [(line["log_z_error"], line["log_z_standard_error"]) for line in lines]
    if not pairs or None in [value for pair in pairs for value in pair]:
        return "-"
    spread = 2 * math.sqrt(sum(error**2 for _, error in pairs)) / len(pairs)
    return f"{mean(value for value, _ in pairs):+.4f} ± {spread:.4f}"


def averaged(lines: Sequence[Line], key: str, form: str) -> str:
    """The mean over seeds, a dash where one has no value."""
    values = [line[key] for line in lines]
    return shown(None if not values or None in values else mean(values), form)


def draw(out: Path) -> bool:
    """Draws the gains of a folder's summary, if it has any."""
    return draw_summary(out, PLAIN, "", column=GAIN, label=LABEL)


STUDY = Study(table, summary, draw, rows=False)
