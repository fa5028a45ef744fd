"""The picture of gains: what each flow has more than the flow that it is compared with."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from common.paired import Estimate
from common.report import cells_of, replacing

COLUMNS = 2  # of panels
GAIN = "gain (nats) ± 2 s.e."  # the column of a summary
LABEL = "gain over the plain flow on the same test rows, nats a row, ± 2 s.e."
WIDTH, BASE, LINE = 10.0, 0.7, 0.2  # inches: the picture, and the height of an empty panel and of a line in it


class Gain(NamedTuple):
    """What a flow gains over its plain one, and whether it is the flow to judge by."""

    plain: str
    flow: str
    estimate: Estimate
    chosen: bool = False


def draw_summary(folder: Path, plain: Mapping[str, str], title: str, *, column: str = GAIN, label: str = LABEL) -> bool:
    """Draws the gains of a folder's ``summary.md``, if there are any: what they are of is not kept with results.

    Args:
        folder: Where the summary is, and ``gains.png`` comes to be.
        plain: What each model is compared with.
        title: Of the picture.
        column: Of the summary, what is drawn.
        label: What the picture says that it is.
    """
    panels: dict[str, list[Gain]] = {}
    summary = folder / "summary.md"
    for row in cells_of(summary.read_text()) if summary.exists() else ():
        if row[column]:
            model = row["model"].strip("*")
            over = plain[model.partition(", ")[0]]
            found = Estimate(*map(float, row[column].split(" ± ")))
            gain = Gain(over, model.removeprefix(over), found, chosen=model != row["model"])
            panels.setdefault(next(iter(row.values())), []).append(gain)
    if panels:
        draw(panels, folder / "gains.png", title, label)
    return bool(panels)


def draw(panels: Mapping[str, Sequence[Gain]], path: Path, title: str = "", label: str = LABEL) -> None:
    """Draws a panel for each table, and in it a bar for each gain, below the name of the plain flow.

    A bar is blue where the gain is above its two standard errors, red where it is as far below zero, else grey. Figures
    of flows to judge by are in bold.
    """
    columns = min(COLUMNS, len(panels))
    sizes = [len(gains) + len({gain.plain for gain in gains}) for gains in panels.values()]
    heights = [BASE + LINE * max(sizes[i : i + columns]) for i in range(0, len(sizes), columns)]
    size = (WIDTH, sum(heights) + (BASE if title else BASE / 2))
    figure, axes = plt.subplots(
        len(heights), columns, figsize=size, height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (name, gains) in zip(axes.flat, panels.items(), strict=False):
        bars(axis, gains)
        axis.set_title(name, fontsize=10)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(label, fontsize=10)
    with replacing(path) as file:
        figure.savefig(file, dpi=100, format="png")
    plt.close(figure)


def bars(axis: Axes, gains: Sequence[Gain]) -> None:
    """A panel: names on the left, figures on the right."""
    names, shown = list[str](), dict[int, Gain]()
    for plain in dict.fromkeys(gain.plain for gain in gains):
        names.append(f"over {plain}")
        for gain in (gain for gain in gains if gain.plain == plain):
            shown[len(names)] = gain
            names.append(gain.flow)
    for row, (_, _, (mean, error), _) in shown.items():
        if not math.isfinite(mean + error):  # the figure says so
            continue
        colour = "C0" if mean > error else "C3" if mean < -error else "C7"
        axis.barh(row, mean, xerr=error, color=colour, capsize=3)
    axis.axvline(0, color="k", linewidth=0.8)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set_ylim(len(names) - 0.5, -0.5)
    figures = axis.secondary_yaxis("right")
    figures.set_yticks(list(shown), [str(gain.estimate) for gain in shown.values()], fontsize=9)
    for label, gain in zip(figures.get_yticklabels(), shown.values(), strict=True):
        label.set_fontweight("bold" if gain.chosen else "normal")
    for side in (axis, figures):
        side.tick_params(axis="y", length=0)
