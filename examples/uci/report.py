"""What the benchmark writes: the results, a table of them, what flowplug's transforms gain, and a picture of that."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from common.gains import GAIN, draw_summary
from common.paired import Estimate, written
from common.report import markdown, shown
from common.rows import Rows
from common.runs import Line, title_of
from common.study import Study, by_model, is_chosen
from uci.models import MARGINAL, PLAIN
from uci.tuning import SETTINGS

Runs = dict[int, Line]  # by seed
SAMPLES = 200  # whose time is measured

# Gresele et al. (2020), Table 1, as printed: test log-likelihoods in nats, "mean and two standard deviations".
COLUMNS = ("POWER", "GAS", "HEPMASS", "MINIBOONE", "BSDS300")
REFERENCE = {
    "Gresele et al. (2020)": ("0.065 ± 0.013", "6.978 ± 0.020", "-21.958 ± 0.019", "-13.372 ± 0.450", "151.12 ± 0.28"),
    "MADE": ("-3.097 ± 0.030", "3.306 ± 0.039", "-21.804 ± 0.020", "-15.635 ± 0.498", "146.37 ± 0.28"),
    "MADE MoG": ("0.375 ± 0.013", "7.803 ± 0.022", "-18.368 ± 0.019", "-12.740 ± 0.439", "150.84 ± 0.27"),
    "Real NVP (10)": ("0.182 ± 0.014", "8.357 ± 0.019", "-18.938 ± 0.021", "-11.795 ± 0.453", "153.28 ± 1.78"),
    "Real NVP (5)": ("-0.459 ± 0.010", "6.656 ± 0.020", "-20.037 ± 0.020", "-12.418 ± 0.456", "151.76 ± 0.27"),
    "MAF (5)": ("-0.458 ± 0.016", "7.042 ± 0.024", "-19.400 ± 0.020", "-11.816 ± 0.444", "149.22 ± 0.28"),
    "MAF (10)": ("-0.376 ± 0.017", "7.549 ± 0.020", "-25.701 ± 0.025", "-11.892 ± 0.459", "150.46 ± 0.28"),
    "MAF MoG (5)": ("0.192 ± 0.014", "7.183 ± 0.020", "-22.747 ± 0.017", "-11.995 ± 0.462", "152.58 ± 0.66"),
}


def table(lines: Sequence[Line]) -> str:
    """The results as a Markdown table; published figures stand below those on the published data only."""
    columns = [
        "data", "model", "seed", "test log-likelihood (nats) ± 2 s.e.", "parameters", "lr", "decay", "steps", "steps/s",
        "peak MiB",        f"{SAMPLES} samples, ms", "round trip",
    ]  # fmt: skip
    rows: list[list[object]] = []
    for data, published in dict.fromkeys((line["config"]["data"], line["published"]) for line in lines):
        for line in lines:
            if (line["config"]["data"], line["published"]) == (data, published):
                rows.append([data, title_of(line["config"]), line["config"]["seed"], *cells(line)])
        if published:
            figures = {model: values[COLUMNS.index(data)] for model, values in REFERENCE.items()}
            rows += [[data, f"{model}, published", "", value, *[""] * 8] for model, value in figures.items()]
    return markdown(columns, rows)


def cells(line: Line) -> list[str]:
    """The measured columns of one row."""
    if "failed" in line:
        return [line["failed"], *[""] * 8]
    level, spread = (shown(line[key], ".3f") for key in ("test_log_likelihood", "two_standard_errors"))
    forms = {"steps_per_second": ".1f", "peak_memory_mib": ".0f", "sampling_ms": ".0f", "round_trip_error": ".0e"}
    rest = [shown(line[key], form) for key, form in forms.items()]
    settings = [f"{line['config'].get(key, 0.0):g}" for key in SETTINGS]
    return [f"{level} ± {spread}", f"{line['parameters']:,}", *settings, str(line["steps"]), *rest]


def summary(lines: Sequence[Line], out: Path) -> str:
    """Means over seeds as a Markdown table, and what flowplug's transforms gain: differences on the same test rows.

    Last what splines of the features gain, over the same flow without them. In bold the mixture with each host flow
    that is best on validation rows: the one to judge by.
    """
    columns = [
        "data", "model", "seeds", "validation", "test log-likelihood (nats) ± 2 s.e.", "steps", GAIN,
        "of each seed", "of marginals",
    ]  # fmt: skip
    measured, done = Rows(out), by_model(lines)
    validation = {key: mean(line["validation"] for line in runs.values()) for key, runs in done.items() if runs}
    rows = list[list[object]]()
    for (data, model), runs in done.items():
        name, without = PLAIN.get(model, ""), model.removesuffix(MARGINAL)
        chosen = is_chosen((data, model), validation, PLAIN)
        levels = filter(None, (measured(line) for line in runs.values()))
        gain = gains(runs, done.get((data, name), {}), measured)
        of_marginals = gains(runs, done.get((data, without), {}), measured) if without != model else []
        title = ", ".join(dict.fromkeys(title_of(line["config"]) for line in runs.values())) or model
        rows.append([
            data,
            f"**{title}**" if chosen else title,
            " ".join(map(str, runs)),
            format(validation[data, model], ".3f") if runs else "",
            written(list(levels)),
            round(mean(line["steps"] for line in runs.values())) if runs else "",
            written(gain, "+"),
            " ".join(f"{value.mean:+.2f}" for value in gain),
            written(of_marginals, "+"),
        ])  # fmt: skip
    measured.write()
    return markdown(columns, rows)


def gains(runs: Runs, plain: Runs, measured: Rows) -> list[Estimate]:
    """Differences of test log-likelihoods on the same rows, of each seed that both have."""
    found = (measured(line, plain[seed]) for seed, line in runs.items() if seed in plain)
    return [value for value in found if value is not None]


def draw(out: Path) -> bool:
    """Draws the gains of a folder's summary, if it has any."""
    return draw_summary(out, PLAIN, "figures in bold: the best mixture with a flow on validation rows")


STUDY = Study(table, summary, draw)
