"""What the study writes: the results, a table of them, what flowplug's transforms gain, and a picture of that."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from torch import Tensor

from anomalies.scores import Judged, Statistic, auroc, average_precision, estimated, judge
from common.gains import draw_summary
from common.paired import Estimate, over_seeds
from common.report import finite, markdown, shown
from common.rows import Rows
from common.runs import Line
from common.study import Study, by_model, is_chosen
from uci.models import PLAIN

STATISTICS: dict[str, Statistic] = {"AUROC": auroc, "average precision": average_precision}
GAIN = "gain in {} ± 2 s.e."  # columns of a summary
LABEL = "gain in AUROC over the plain flow on the same rows, percentage points, ± 2 s.e."


def judged(values: Tensor, tests: int) -> Line:
    """What a run is judged by, of negative scores ``(rows,)``: of so many normal rows, and then of anomalies."""
    found = {name: estimated(one) for name, one in statistics(values, tests).items()}
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
    done = by_model(lines)
    flows = {key: [line for line in runs.values() if "validation" in line] for key, runs in done.items()}
    validation = {key: mean(line["validation"] for line in own) for key, own in flows.items() if own}
    known, rows = Rows(out), list[list[object]]()
    for key, runs in done.items():
        data, model = key
        name = PLAIN.get(model, "")
        chosen = is_chosen(key, validation, PLAIN)
        plain = done.get((data, name), {})
        rows.append([
            data,
            f"**{model}**" if chosen else model,
            " ".join(map(str, runs)),
            *averages(flows[key], {"validation": ".3f", "test_log_likelihood": ".3f"}),
            *(cell for name in STATISTICS for cell in compared(runs, plain, name, known)),
            *averages(flows[key], {"steps": ".0f", "seconds": ".1f"}),
        ])  # fmt: skip
    known.write()
    return markdown(columns, rows)


def averages(lines: Sequence[Line], forms: dict[str, str]) -> list[str]:
    """Means over runs, nothing where there are none, a dash where one is not finite."""
    if not lines:
        return [""] * len(forms)
    found = {key: [line[key] for line in lines] for key in forms}
    return [shown(None if None in found[key] else mean(found[key]), form) for key, form in forms.items()]


def compared(runs: dict[int, Line], plain: dict[int, Line], name: str, known: Rows) -> list[str]:
    """A statistic of runs by their seeds, its gain over plain ones of the same seeds, and the gain of each."""
    own = filter(None, (measured([line], name, known) for line in runs.values()))
    pairs = ([line, plain[seed]] for seed, line in runs.items() if seed in plain)
    gains = list(filter(None, (measured(pair, name, known) for pair in pairs)))
    return [shortly(list(own)), shortly(gains, "+"), " ".join(f"{gain.mean:+.2f}" for gain in gains)]


def measured(runs: Sequence[Line], name: str, known: Rows) -> Estimate | None:
    """A statistic of a run, or its difference from that of another on the same rows."""

    def measure(rows: Sequence[Tensor]) -> Estimate:
        one, *others = (statistics(values, run["test_rows"])[name] for run, values in zip(runs, rows, strict=True))
        return estimated(one - others[0] if others else one)

    return known.measured(runs, name, measure)


def shortly(runs: Sequence[Estimate], sign: str = "") -> str:
    """The mean over seeds in a table, nothing where there are none."""
    if not runs:
        return ""
    level, error = over_seeds(runs)
    return f"{level:{sign}.2f} ± {error:.2f}"


def draw(out: Path) -> bool:
    """Draws the gains of a folder's summary, if it has any."""
    title = "figures in bold: the best mixture with a flow on validation rows, by likelihood"
    return draw_summary(out, PLAIN, title, column=GAIN.format("AUROC"), label=LABEL)


STUDY = Study(table, summary, draw)
