"""What the study writes: the results, a table of them, what flowplug's transforms gain, and a picture of that."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from torch import Tensor

from anomalies.scores import Judged, Statistic, auroc, average_precision, estimated, judge
from common.gains import draw_summary
from common.report import finite, markdown, shown, write_lines, write_text
from common.runs import Line, log_likelihoods
from uci.models import PLAIN

STATISTICS: dict[str, Statistic] = {"AUROC": auroc, "average precision": average_precision}
GAIN = "gain in {} ± 2 s.e."  # columns of a summary
LABEL = "gain in AUROC over the plain flow on the same rows, percentage points, ± 2 s.e."


class Scored(NamedTuple):
    """A run: its line, and what its scores are judged by."""

    line: Line
    judged: dict[str, Judged]


def judged(values: Tensor, tests: int) -> Line:
    """What a run is judged by, of negative scores ``(rows,)``: of so many normal rows, and then of anomalies."""
    found = {name: estimated([one]) for name, one in statistics(values, tests).items()}
    numbers = {
        key_of(name) + ending: number
        for name, estimate in found.items()
        for ending, number in (("", estimate.mean), ("_two_standard_errors", estimate.error))
    }
    return {"test_log_likelihood": finite(float(values[:tests].mean())), "test_rows": tests} | numbers


def statistics(values: Tensor, tests: int) -> dict[str, Judged]:
    """Every statistic of the scores, in percent."""
    scores = -values.double()
    return {name: judge(statistic, scores[:tests], scores[tests:]) for name, statistic in STATISTICS.items()}


def key_of(name: str) -> str:
    """Of a statistic in a line of results."""
    return name.lower().replace(" ", "_")


def table(lines: Sequence[Line]) -> str:
    """The results as a Markdown table, a row for each run."""
    columns = [
        "data", "model", "seed", *(f"{name} (%) ± 2 s.e." for name in STATISTICS), "validation (nats)",
        "test log-likelihood (nats)", "parameters", "steps", "seconds",
    ]  # fmt: skip
    rows = [[line["config"][key] for key in ("data", "model", "seed")] + cells(line) for line in lines]
    return markdown(columns, rows)


def cells(line: Line) -> list[str]:
    """The measured columns of one row; scores without a flow have no likelihoods."""
    if "failed" in line:
        return [line["failed"], *[""] * 6]
    keys = [key_of(name) for name in STATISTICS]
    found = [f"{line[key]:.2f} ± {line[f'{key}_two_standard_errors']:.2f}" for key in keys]
    if "validation" not in line:
        return [*found, *[""] * 5]
    forms = {"validation": ".3f", "test_log_likelihood": ".3f", "parameters": ",", "steps": "", "seconds": ".1f"}
    return [*found, *(shown(line[key], form) for key, form in forms.items())]


def summary(lines: Sequence[Line], out: Path) -> str:
    """Means over seeds as a Markdown table, and what flowplug's transforms gain: differences on the same rows.

    In bold the mixture with each host flow that is best on validation rows, which are all normal: the one to judge by.
    """
    columns = [
        "data", "model", "seeds", "validation (nats)", "test log-likelihood (nats)",
        *(column for name in STATISTICS for column in (f"{name} (%) ± 2 s.e.", GAIN.format(name), "of each seed")),
        "steps", "seconds",
    ]  # fmt: skip
    done: dict[tuple[str, str], dict[int, Scored]] = {pair(line): {} for line in lines}
    for line in lines:
        values = log_likelihoods(line["config"], out)
        if "failed" not in line and values is not None:
            done[pair(line)][line["config"]["seed"]] = Scored(line, statistics(values, line["test_rows"]))
    flows = {key: [run.line for run in runs.values() if "validation" in run.line] for key, runs in done.items()}
    validation = {key: mean(line["validation"] for line in own) for key, own in flows.items() if own}
    rows = list[list[object]]()
    for key, runs in done.items():
        data, model = key
        name = PLAIN.get(model, "")
        rivals = [other for other in validation if other[0] == data and PLAIN.get(other[1]) == name]
        chosen = bool(name) and key == max(rivals, key=validation.__getitem__, default=None)
        plain = done.get((data, name), {})
        rows.append([
            data,
            f"**{model}**" if chosen else model,
            " ".join(map(str, runs)),
            *averages(flows[key], {"validation": ".3f", "test_log_likelihood": ".3f"}),
            *(cell for name in STATISTICS for cell in compared(runs, plain, name)),
            *averages(flows[key], {"steps": ".0f", "seconds": ".1f"}),
        ])  # fmt: skip
    return markdown(columns, rows)


def averages(lines: Sequence[Line], forms: dict[str, str]) -> list[str]:
    """Means over runs, nothing where there are none, a dash where one is not finite."""
    if not lines:
        return [""] * len(forms)
    found = {key: [line[key] for line in lines] for key in forms}
    return [shown(None if None in found[key] else mean(found[key]), form) for key, form in forms.items()]


def compared(runs: dict[int, Scored], plain: dict[int, Scored], name: str) -> list[str]:
    """A statistic of runs by their seeds, its gain over plain ones of the same seeds, and the gain of each."""
    own = [run.judged[name] for run in runs.values()]
    gains = [run.judged[name] - plain[seed].judged[name] for seed, run in runs.items() if seed in plain]
    return [written(own), written(gains, "+"), " ".join(f"{float(gain.value):+.2f}" for gain in gains)]


def written(judged: Sequence[Judged], sign: str = "") -> str:
    """An estimate in a table, nothing where there are no runs."""
    if not judged:
        return ""
    level, error = estimated(judged)
    return f"{level:{sign}.2f} ± {error:.2f}"


def pair(line: Line) -> tuple[str, str]:
    """Data and model of a run."""
    return line["config"]["data"], line["config"]["model"]


def draw(out: Path) -> bool:
    """Draws the gains of a folder's summary, if it has any."""
    title = "figures in bold: the best mixture with a flow on validation rows, by likelihood"
    return draw_summary(out, PLAIN, title, column=GAIN.format("AUROC"), label=LABEL)


def report(lines: Sequence[Line], out: Path) -> str:
    """Writes the results so far; returns both tables, and what is written."""
    write_lines(out / "results.jsonl", lines)
    tables = {"table.md": table(lines), "summary.md": summary(lines, out)}
    for name, text in tables.items():
        write_text(out / name, f"{text}\n")
    written = ["results.jsonl", *tables, *(["gains.png"] if draw(out) else [])]
    return "\n\n".join([*tables.values(), f"written to {out}: {', '.join(written)}"])
