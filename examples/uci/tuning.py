"""What was best for a flow among settings that were tried."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.command import OptionError
from common.report import read_lines
from common.runs import Config, Line

SETTINGS = ("lr", "weight_decay")


def tried(folders: Sequence[Path]) -> list[Line]:
    """The runs of folders that were finite on validation rows."""
    lines = [line for folder in folders for line in read_lines(folder / "results.jsonl")]
    return [line for line in lines if line.get("validation") is not None]


def tuned(lines: Sequence[Line], config: Config) -> dict[str, Any]:
    """`SETTINGS` of the run of the same model on the same table that was best on validation rows.

    Raises:
        OptionError: There is none.
    """
    own = [line for line in lines if all(line["config"][key] == config[key] for key in ("data", "model"))]
    if not own:
        raise OptionError(f"--tuned holds no run of {config['model']} on {config['data']}: train it there first")
    best = max(own, key=lambda line: float(line["validation"]))
    return {key: best["config"].get(key, 0.0) for key in SETTINGS}
