"""Figures with their units: as tables on the screen, as lines of JSON in a file, and as tables of the page from those.

A line holds one measurement: the table it belongs to, its setting, its figures, and where they come from.
"""

import json
import math
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import torch

from common.clock import ratio
from common.command import at_least, parse, sound
from common.provenance import device_name, provenance
from common.report import append_line, markdown

DIGITS = 4
Line = dict[str, Any]
T = TypeVar("T", bound="Recorded")


@dataclass(frozen=True)
class Figure:
    """A number and its unit; of its spread two standard errors, the quartiles, or the least and the most."""

    value: float
    unit: str = ""
    two_standard_errors: float | None = None
    quartiles: tuple[float, float] | None = None
    least: float | None = None
    most: float | None = None

    def json(self) -> Line:
        """What is known, to `DIGITS` digits."""
        return {name: rounded(value) for name, value in vars(self).items() if value is not None}


Measurement = tuple[str, Mapping[str, object], Mapping[str, Figure | float]]  # a table, a setting, figures by name


def median(values: Sequence[float], unit: str) -> Figure:
    """The median of at least two values, with quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return Figure(middle, unit, quartiles=(low, high))


def over(times: Sequence[float], others: Sequence[float], *, total: bool = False) -> Figure:
    """Times by others, round by round: the median, or the ratio of the totals, with quartiles."""
    by = ratio(times, others)
    return Figure(by.total if total else by.median, "ratio of times", quartiles=(by.low, by.high))


def exponent(sizes: Sequence[float], values: Sequence[float]) -> Figure:
    """The power of the sizes that the values grow with, by least squares on logarithms over at least two sizes.

    With its standard errors from three sizes on: where the growth is not yet, or no more, that of a power, they say so.
    """
    x, y = (torch.tensor(part, dtype=torch.float64).log() for part in (sizes, values))
    x, y = x - x.mean(), y - y.mean()
    slope = x @ y / (x @ x)
    if len(sizes) < 3:
        return Figure(float(slope))
    error = ((y - slope * x).square().sum() / (len(sizes) - 2) / (x @ x)).sqrt()
    return Figure(float(slope), two_standard_errors=2 * float(error))


def hardware() -> str:
    """The kind of device that times depend on: torch's default."""
    device = torch.empty(0).device
    return "cpu" if device.type == "cpu" else device_name(device)


@dataclass(frozen=True)
class Recorded:
    """What every benchmark can be told."""

    record: Path | None = None  # file to which a line of JSON is added for every measurement
    threads: int = 1

    def __post_init__(self) -> None:
        sound(self)
        if hasattr(self, "rounds"):
            at_least(self, 2, "rounds")  # which have quartiles


def run(measure: Callable[[T], Iterable[Measurement]], kind: type[T], description: str | None) -> None:
    """Measures as the command line says, prints the tables and their provenance, and records the lines with it."""
    options = parse(kind, description=description)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    lines = [line(*measurement) for measurement in measure(options)]
    for name in dict.fromkeys(line["table"] for line in lines):
        print(f"\n{name}\n\n{table([line for line in lines if line['table'] == name])}")
    source = {"command": command(sys.argv), **provenance(torch.empty(0).device, "examples/benchmarks")}
    print("\n{command}\ncommit {commit}, {date}, flowplug {flowplug}, torch {torch}, {device}".format(**source))
    if options.record is not None:
        for each in lines:
            append_line(options.record, {"benchmark": Path(sys.argv[0]).stem, **each, **source})
        print(f"\nadded {len(lines)} lines to {options.record}")


def line(name: str, setting: Mapping[str, object], figures: Mapping[str, Figure | float]) -> Line:
    """A measurement as JSON has it; a bare number has no unit."""
    known = {key: (value if isinstance(value, Figure) else Figure(value)).json() for key, value in figures.items()}
    return {"table": name, "setting": dict(setting), "figures": known}


def rounded(value: Any) -> Any:  # noqa: ANN401 -- numbers, pairs of them, and units
    """To `DIGITS` digits, and None where JSON has no such number."""
    if isinstance(value, tuple):
        return [rounded(part) for part in value]
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    number = float(f"{value:.{DIGITS}g}")
    return int(number) if abs(number) >= 10 ** (DIGITS - 1) else number


def command(arguments: Sequence[str]) -> str:
    """The command line of a benchmark, without ``--record`` and the folders of this machine."""
    script, *rest = arguments
    words, skip = ["python", f"examples/benchmarks/{Path(script).name}"], False
    for word in rest:
        if not skip and not word.startswith("--record"):
            words.append(Path(word).name if "/" in word else word)
        skip = word == "--record"
    return shlex.join(words)


def read(path: Path) -> list[Line]:
    """The lines of a file, none if it is not there; numbers keep their digits: 1.50 is not 1.5."""
    return [json.loads(line, parse_float=Decimal) for line in path.read_text().splitlines()] if path.exists() else []


def latest(lines: Sequence[Line]) -> list[Line]:
    """Those lines that hold a figure no later one of the same setting holds."""
    kept, known = list[Line](), dict[str, set[str]]()
    for line in reversed(lines):
        later = known.setdefault(json.dumps(line["setting"], default=str), set())
        if not later.issuperset(line["figures"]):
            kept.append(line)
        later.update(line["figures"])
    return kept[::-1]


def table(lines: Sequence[Line], across: str | None = None) -> str:
    """A Markdown table, below what its lines have in common; the setting ``across`` has columns for its values."""
    settings = [{name: text(value) for name, value in line["setting"].items()} for line in lines]
    names = list(dict.fromkeys(name for setting in settings for name in setting if name != across))
    varying = [name for name in names if len({setting.get(name, "") for setting in settings}) > 1]
    figures = list(dict.fromkeys(title(*figure) for line in lines for figure in line["figures"].items()))
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for line, setting in zip(lines, settings, strict=True):
        row = rows.setdefault(tuple(setting.get(name, "") for name in varying), {})
        for figure in line["figures"].items():
            row[column(setting, across, title(*figure), single=len(figures) == 1)] = cell(figure[1])
    columns = sorted(dict.fromkeys(name for row in rows.values() for name in row), key=number)
    common = [f"{name} {settings[0][name]}" for name in names if name not in varying]
    if across is not None and len(figures) == 1:
        common.insert(0, figures[0])
    body = [[*key, *(row.get(name, "") for name in columns)] for key, row in rows.items()]
    return "\n\n".join(filter(None, ["; ".join(common), markdown([*varying, *columns], body)]))


def column(setting: Mapping[str, str], across: str | None, figure: str, *, single: bool) -> str:
    """The head of a figure's column."""
    if across is None:
        return figure
    value = setting[across]
    head = f"{across} {value}" if value[:1].isdigit() else value
    return head if single else f"{head}: {figure}"


def number(head: str) -> float:
    """What columns of a setting's numbers are sorted by; others keep their order."""
    last = head.partition(":")[0].rpartition(" ")[2]
    return float(last) if last.replace(".", "", 1).isdigit() else 0.0


def title(name: str, figure: Line) -> str:
    """A figure's name with its unit."""
    return f"{name}, {figure['unit']}" if figure["unit"] else name


def text(value: Any) -> str:  # noqa: ANN401 -- whatever JSON holds
    """A setting or a number as a reader sees it."""
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def cell(figure: Line) -> str:
    """A number with its spread."""
    parts = [text(figure["value"])] if figure.get("value") is not None else []
    if figure.get("two_standard_errors") is not None:
        parts.append(f"± {text(figure['two_standard_errors'])}")
    if figure.get("quartiles") is not None:
        parts.append(f"[{text(figure['quartiles'])}]")
    if figure.get("most") is not None:
        least = f"{text(figure['least'])} to " if figure.get("least") is not None else "at most "
        parts.append(f"({least}{text(figure['most'])})" if parts else f"{least}{text(figure['most'])}")
    return " ".join(parts) or "none"
