"""Draws docs/_static/scale.png from the lines of results/benchmarks/scale.jsonl.

From the folder examples, ``python -m benchmarks.scale_picture``; the docs show it with the tables.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.costs.scaling import PHASES
from benchmarks.measurements import Line, latest
from benchmarks.page import RECORDS
from benchmarks.scale import AXES
from common.provenance import ROOT
from common.report import read_lines, replacing

SOURCE = RECORDS / "scale.jsonl"
PICTURE = ROOT / "docs" / "_static" / "scale.png"
QUANTITIES = {"time": "ms", "memory": "MiB"}
WIDTH, HEIGHT = 10.0, 2.1  # inches: of the picture, and of a panel
Points = dict[str, dict[int, float]]  # by line, then by size


def points(lines: Sequence[Line], table: str, by: str, size: str, figure: str, **setting: object) -> Points:
    """The figure of a table's lines of this setting, for each value of ``by``, against ``size``."""
    found: Points = {}
    for line in lines:
        known = line["setting"]
        if line["table"] == table and all(known[name] == value for name, value in setting.items()):
            found.setdefault(known[by], {})[known[size]] = line["figures"][figure]["value"]
    return found


def slopes(lines: Sequence[Line], table: str, by: str, figure: str, **setting: object) -> dict[str, str]:
    """The fitted exponents, with two standard errors."""
    found = dict[str, str]()
    for line in lines:
        known = line["setting"]
        if line["table"] == table and all(known[name] == value for name, value in setting.items()):
            slope = line["figures"].get(figure, {"value": None})
            error = slope.get("two_standard_errors")
            spread = "" if error is None else f" ± {error:.2f}"
            found[known[by]] = "" if slope["value"] is None else f" {slope['value']:.2f}{spread}"
    return found


def panel(axes: Axes, shown: Points, exponents: dict[str, str], colours: dict[str, str]) -> None:
    """Lines, named with their exponents."""
    for name, values in sorted(shown.items(), key=lambda item: -max(item[1].values())):
        sizes = [size for size in sorted(values) if values[size] > 0]  # on logarithms others are nowhere
        label = f"{name}{exponents.get(name, '')}"
        axes.plot(sizes, [values[size] for size in sizes], "o-", color=colours[name], label=label, markersize=3)
    axes.set(xscale="log", yscale="log")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.5)  # room for the names
    axes.legend(fontsize=7, loc="upper left", frameon=False, labelspacing=0.2, handlelength=1)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """One for each name."""
    return {name: f"C{i}" for i, name in enumerate(dict.fromkeys(names))}


def draw(lines: Sequence[Line], path: Path) -> None:
    """Draws time and memory of each phase against each size, and below them the parts of the residual flow."""
    rows = [(quantity, phase) for quantity in QUANTITIES for phase in PHASES]
    size = (WIDTH, HEIGHT * (len(rows) + 1))
    figure, grid = plt.subplots(len(rows) + 1, len(AXES), figsize=size, squeeze=False, layout="constrained")
    flows = colours_of([line["setting"]["flow"] for line in lines if line["table"] == "Growth of flows"])
    for (quantity, phase), panels in zip(rows, grid, strict=False):
        for axis, axes in zip(AXES, panels, strict=True):
            table = f"{quantity.title()} against {axis}"
            shown = points(lines, table, "flow", AXES[axis], quantity, phase=phase)
            fits = slopes(lines, "Growth of flows", "flow", f"exponent of {quantity}", phase=phase, along=axis)
            panel(axes, shown, fits, flows)
            axes.set_xlabel(axis, fontsize=8)
        panels[0].set_ylabel(f"{phase}: {quantity}, {QUANTITIES[quantity]}", fontsize=8)
    parts = colours_of([line["setting"]["part"] for line in lines if line["table"] == "Growth of the parts"])
    for phase, axes in zip(PHASES, grid[-1], strict=True):
        shown = points(lines, "Parts of a residual flow", "part", "D", "time", phase=phase)
        panel(axes, shown, slopes(lines, "Growth of the parts", "part", "exponent of D", phase=phase), parts)
        axes.set_xlabel(f"features; parts of {phase}", fontsize=8)
    grid[-1][0].set_ylabel("residual flow: time, ms", fontsize=8)
    title = "Cost against features, rows and blocks; behind each name the exponent over the upper half, ± 2 s.e."
    figure.suptitle(title, fontsize=10)
    with replacing(path) as file:
        figure.savefig(file, dpi=100, format="png", metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Draws the picture."""
    draw(latest(read_lines(SOURCE)), PICTURE)
    print(f"wrote {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
