"""Means over seeds, and paired differences: of what several runs say of the same images."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common.paired import written
from common.report import markdown
from common.rows import Quantity, Rows
from common.runs import Config, Line

Quantities = Mapping[str, Quantity]  # by the name they have in tables


def summary(
    lines: Sequence[Line], out: Path, quantities: Quantities, group: Callable[[Config], str] = lambda _: ""
) -> str:
    """A Markdown table: a row for each model, with errors of images and seeds together.

    Args:
        lines: The runs.
        out: Where they are.
        quantities: The columns.
        group: What runs have in common with those they are compared with: the first model of each group.
    """
    runs: dict[tuple[str, str], dict[str, list[Line]]] = {}
    for line in lines:
        config = line["config"]
        runs.setdefault((config["data"], group(config)), {}).setdefault(config["model"], []).append(line)
    columns = [title for name in quantities for title in (f"{name} ± 2 s.e.", "difference ± 2 s.e.")]
    measured, rows = Rows(out), list[list[object]]()
    for (data, _), models in runs.items():
        first = by_seed(next(iter(models.values())))
        for model, own in models.items():
            done = by_seed(own)
            others = {} if done == first else {seed: first[seed] for seed in done if seed in first}
            cells = list[str]()
            for name, quantity in quantities.items():
                levels = (measured(line, None, quantity, name) for line in done.values())
                differences = (measured(done[seed], other, quantity, name) for seed, other in others.items())
                cells += [written(list(filter(None, levels))), written(list(filter(None, differences)), "+")]
            rows.append([data, model, " ".join(str(line["config"]["seed"]) for line in own), *cells])
    measured.write()
    return markdown(["data", "model", "seeds", *columns], rows)


def by_seed(lines: Sequence[Line]) -> dict[int, Line]:
    """The runs that ended well."""
    return {line["config"]["seed"]: line for line in lines if "failed" not in line}
