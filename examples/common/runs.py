"""What a run is known by: its configuration, the code that made it, and its files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Config = dict[str, Any]  # data, model, seed, and every option that a run depends on
Line = dict[str, Any]  # of results.jsonl
ACCEPT = "pass --across-commits to accept it, or another --out to begin anew"


def name_of(config: Mapping[str, Any]) -> str:
    """Data, model and seed."""
    return "{data}-{model}-{seed}".format(**config)


def title_of(config: Mapping[str, Any]) -> str:
    """The model, and whether its training step was compiled, or replayed as CUDA graphs."""
    ways = [way for key, way in (("replay", "replayed"), ("compile", "compiled")) if key in config]
    return ", ".join([str(config["model"]), *ways[:1]])


def run_path(config: Mapping[str, Any], folder: Path, kind: str) -> Path:
    """Where a run's ``kind`` of file is: its checkpoint, its failure, its test log-likelihoods."""
    return folder / f"{name_of(config)}.{kind}.pt"


def code_of(versions: Mapping[str, Any]) -> str:
    """The version and commit of flowplug, as messages name them."""
    return f"flowplug {versions['flowplug']} at commit {versions.get('commit') or 'unknown'}"


def check(lines: Sequence[Line], configs: Sequence[Config], folder: Path, code: str, *, across: bool) -> None:
    """Checks that what is there of these runs can be gone on from.

    Args:
        lines: Runs that ended.
        configs: Runs that are asked for.
        folder: Where checkpoints are.
        code: What the runs are asked of, as `code_of` has it.
        across: Whether results of other code are accepted.

    Raises:
        ValueError: A line or a checkpoint is of other code, or a checkpoint of other options.
    """
    done = [line for line in lines if line["config"] in configs]
    for line in done:
        if not across and code_of(line["versions"]) != code:
            name = name_of(line["config"])
            raise ValueError(f"{name} in {folder} was made by {code_of(line['versions'])}, this is {code}: {ACCEPT}")
    ended = [line["config"] for line in done]
    for config in configs:
        path = run_path(config, folder, "checkpoint")
        if config in ended or not path.exists():
            continue
        state = torch.load(path, map_location="cpu", weights_only=True)
        if different := sorted(key for key, value in config.items() if state["config"].get(key) != value):
            raise ValueError(f"{path} is of a run with other {different}: use another --out")
        if not across and (made := state.get("code", "code that did not say")) != code:
            raise ValueError(f"{path} was made by {made}, this is {code}: {ACCEPT}")


def complete(
    lines: list[Line],
    configs: Sequence[Config],
    work: Callable[[Config], Line],
    report: Callable[[list[Line]], object],
    folder: Path,
    *,
    first: bool,
) -> None:
    """Works off the runs that have no line yet.

    Args:
        lines: Runs that ended; those that end now are added.
        configs: Runs that are asked for.
        work: Makes the rest of a line.
        report: Called with the lines after each run, in the ``first`` process.
        folder: Where checkpoints are, which a run that has ended leaves none of.
        first: Whether this process is the first.
    """
    for config in configs:
        if config not in [line["config"] for line in lines]:
            lines.append({"config": config, **work(config)})
            if first:
                report(lines)
        if first:
            run_path(config, folder, "checkpoint").unlink(missing_ok=True)


def log_likelihoods(config: Config, out: Path) -> Tensor | None:
    """Test log-likelihoods ``(rows,)`` of a run, if they are still there: a run of other options overwrites them."""
    path = run_path(config, out, "values")
    saved = torch.load(path, weights_only=True) if path.exists() else {"config": None}
    return saved["values"] if saved["config"] == config else None
