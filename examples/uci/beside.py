"""Gains of two results side by side, as of one engine and the next.

cd examples && python -m uci.beside results/equal_time_0.1 results/equal_time      # writes beside.md into the last
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from common.command import refuse
from common.gains import GAIN
from common.report import cells_of, markdown, write_text

STEPS = "steps"


def beside(folders: Sequence[Path]) -> str:
    """The gains of every summary, and the mean steps of a run, where all have them, as a Markdown table."""
    tables = [cells_of((folder / "summary.md").read_text()) for folder in folders]
    found = [{(row["data"], row["model"].strip("*")): row for row in rows} for rows in tables]
    keys = [key for key, row in found[-1].items() if row[GAIN] and all(key in rows for rows in found)]
    columns = [f"{folder.name}, {what}" for folder in folders for what in ("nats", STEPS)]
    rows = [[*key, *(rows[key][column] for rows in found for column in (GAIN, STEPS))] for key in keys]
    return markdown(["data", "model", *columns], rows)


def main() -> None:
    """Writes the table of the folders that the command line names."""
    folders = [Path(name) for name in sys.argv[1:]]
    if len(folders) < 2:
        refuse("give two folders of results, or more")
    for folder in folders:
        if not (folder / "summary.md").is_file():
            refuse(f"{folder} holds no summary.md: give folders that uci.py wrote")
    text = beside(folders)
    write_text(folders[-1] / "beside.md", f"{text}\n")
    print(text)


if __name__ == "__main__":
    main()
