"""Writes docs/benchmarks.md from page.md, the questions, and the lines of results/benchmarks/, the figures.

    cd examples && python -m benchmarks.page

A section of page.md is the table of its name; ``{speed by D}`` stands for its figures in ``speed.jsonl``, with columns
for the values of D.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measurements import Line, latest, read, table
from common.provenance import ROOT
from common.report import write_text

QUESTIONS = Path(__file__).with_suffix(".md")
RECORDS = ROOT / "examples" / "results" / "benchmarks"
PAGE = ROOT / "docs" / "benchmarks.md"
FIGURES = re.compile(r"^\{(?P<benchmark>\w+)(?: by (?P<across>\w+))?\}$", re.MULTILINE)


def source(line: Line) -> str:
    """Where a line comes from."""
    versions = f"flowplug {line['flowplug']}, torch {line['torch'] or 'not recorded'}"
    device = line["device"] or "device not recorded"
    recorded = f", recorded {line['recorded']}" if "recorded" in line else ""
    return f"- commit `{line['commit']}`, {line['date']}, {versions}, {device}{recorded}"


def written(lines: Sequence[Line], across: str | None) -> str:
    """Commands, table and sources."""
    commands = "\n".join(dict.fromkeys(line["command"] for line in lines if line["command"]))
    how = f"```sh\n{commands}\n```" if commands else "No script of today makes these figures."
    return "\n\n".join([how, table(lines, across), "\n".join(dict.fromkeys(map(source, lines)))])


def section(text: str, records: Path) -> str:
    """A section with its figures; nothing if there are none yet."""
    name, _ = text.split("\n", 1)
    if (place := FIGURES.search(text)) is None:
        return text
    lines = latest([line for line in read(records / f"{place['benchmark']}.jsonl") if line["table"] == name])
    return text.replace(place[0], written(lines, place["across"])) if lines else ""


def page(records: Path = RECORDS) -> str:
    """The whole page."""
    parts = QUESTIONS.read_text().split("\n## ")
    return "\n## ".join(filter(None, (section(part, records) for part in parts)))


def main() -> None:
    """Writes the page."""
    PAGE.parent.mkdir(exist_ok=True)
    write_text(PAGE, page())
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
