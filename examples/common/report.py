"""What is written: Markdown tables, JSON lines, and files that are whole or not there."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table.

    Raises:
        ValueError: A row has not a cell for each column.

    Example:
        >>> print(markdown(["model", "nats"], [["a", 1], ["b", 2]]))
        | model | nats |
        |---|---|
        | a | 1 |
        | b | 2 |
    """
    lines = [list(columns), *(list(map(str, row)) for row in rows)]
    if wrong := [line for line in lines if len(line) != len(columns)]:
        raise ValueError(f"each row needs a cell for each of {list(columns)}; got {wrong[0]}")
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(columns), *body])


def cells_of(text: str) -> list[dict[str, str]]:
    """The rows of such a table, by column.

    Example:
        >>> cells_of(markdown(["model", "nats"], [["a", 1], ["b", 2]]))
        [{'model': 'a', 'nats': '1'}, {'model': 'b', 'nats': '2'}]
    """
    head, _, *body = ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines())
    return [dict(zip(head, row, strict=True)) for row in body]


def finite(value: float) -> float | None:
    """The value, or what JSON has for one that is not finite."""
    return value if math.isfinite(value) else None


def shown(value: float | None, form: str) -> str:
    """A number in a table, a dash for one that is not `finite`."""
    return "-" if value is None else format(value, form)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` once it is written whole, and leaves nothing behind otherwise."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a whole file, or leaves the one that is there."""
    with replacing(path) as file:
        file.write(text.encode())


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSON object a line.

    Raises:
        ValueError: A number is not finite, which JSON has not: see `finite`.
    """
    write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a JSON object as the last line.

    Raises:
        ValueError: As in `write_lines`.
    """
    text = json.dumps(line, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, a line each; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
