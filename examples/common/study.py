"""What studies write of their lines: tables, a summary of seeds, and a picture of gains."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from common.report import write_lines, write_text
from common.rows import NAME
from common.runs import Line

Key = tuple[str, str]  # data and model


class Study(NamedTuple):
    """What one study makes of its lines.

    Args:
        table: A row for each run, as a Markdown table.
        summary: A row for each model, of lines and their folder, likewise.
        draw: Draws the gains of a folder's ``summary.md``, if it has any.
        rows: Whether the summary needs what runs say of each row, or `Rows`.
    """

    table: Callable[[Sequence[Line]], str]
    summary: Callable[[Sequence[Line], Path], str]
    draw: Callable[[Path], bool]
    rows: bool = True

    def report(self, lines: Sequence[Line], out: Path) -> str:
        """Writes the results so far; returns both tables, and what is written."""
        write_lines(out / "results.jsonl", lines)
        tables = {"table.md": self.table(lines), "summary.md": self.summary(lines, out)}
        for name, text in tables.items():
            write_text(out / name, f"{text}\n")
        files = ["results.jsonl", *([NAME] if self.rows else []), *tables, *(["gains.png"] if self.draw(out) else [])]
        return "\n\n".join([*tables.values(), f"written to {out}: {', '.join(files)}"])


def by_model(lines: Sequence[Line]) -> dict[Key, dict[int, Line]]:
    """The runs of each model on each table that ended well, by seed."""
    done: dict[Key, dict[int, Line]] = {}
    for line in lines:
        runs = done.setdefault((line["config"]["data"], line["config"]["model"]), {})
        if "failed" not in line:
            runs[line["config"]["seed"]] = line
    return done


def is_chosen(key: Key, validation: Mapping[Key, float], plain: Mapping[str, str]) -> bool:
    """Whether a model is the best on validation rows of those that are compared with the same plain one."""
    data, model = key
    rivals = [other for other in validation if other[0] == data and plain.get(other[1]) == plain.get(model)]
    return model in plain and key == max(rivals, key=validation.__getitem__, default=None)
