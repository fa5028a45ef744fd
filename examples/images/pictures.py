"""Pictures: images side by side, what a flow makes of them, and learning curves."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import flowplug as fp
from common.report import replacing
from common.runs import Config, Line
from common.trial import FAILURES

COLUMNS = 8
SIDE = 64  # pixels of an image, at most, unless it has more
STEPS = 8  # of an interpolation, ends included


def tiled(images: Tensor, columns: int = COLUMNS) -> Tensor:
    """Images ``(n, C, H, W)`` in rows of so many, as one ``(C, rows (H + 1), columns (W + 1))`` with lines between.

    Example:
        >>> tiled(torch.zeros(10, 1, 8, 8), 4).shape
        torch.Size([1, 27, 36])
    """
    padded = torch.nn.functional.pad(images, (0, 1, 0, 1), value=1.0)
    missing = -len(images) % columns
    padded = torch.cat([padded, padded.new_ones(missing, *padded.shape[1:])])
    count, channels, height, width = padded.shape
    rows = padded.reshape(count // columns, columns, channels, height, width)
    return rows.permute(2, 0, 3, 1, 4).reshape(channels, count // columns * height, columns * width)


def save(images: Tensor, path: Path, columns: int = COLUMNS) -> None:
    """Writes images ``(n, C, H, W)``, from 0 to 1, as a PNG; what is beyond is clamped."""
    zoom = max(1, SIDE // images.shape[-2])  # so that single pixels can be seen
    large = images.detach().float().cpu().repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    whole = tiled(large.nan_to_num(0.0).clamp(0, 1), columns)
    pixels = whole.expand(3, -1, -1).permute(1, 2, 0).numpy()
    with replacing(path) as file:
        plt.imsave(cast(BinaryIO, file), pixels, format="png")


@torch.no_grad()
def draw_flow(transform: fp.Transform, samples: Tensor, x: Tensor, folder: Path, name: str) -> None:
    """Draws samples, reconstructions and interpolations of latents, as far as the layers go.

    Each image stands above what comes back of it.

    Args:
        transform: A trained flow, in eval mode.
        samples: Of it, ``(n, C, H, W)``.
        x: At least two images.
        folder: Written to.
        name: What the names of the files begin with.
    """
    if len(samples):
        save(samples, folder / f"{name}.samples.png")
    with suppress(*FAILURES), fp.no_logdet():
        x = x[: 2 * COLUMNS]
        latents = transform(x)[0]
        pairs = zip(torch.split(x, COLUMNS), torch.split(transform.inverse(latents)[0], COLUMNS), strict=True)
        save(torch.cat([row for pair in pairs for row in pair]), folder / f"{name}.reconstructions.png")
        ends = len(x) // 2 * 2
        first, last = latents[0:ends:2].unsqueeze(1), latents[1:ends:2].unsqueeze(1)
        share = torch.linspace(0, 1, STEPS, dtype=x.dtype, device=x.device)
        share = share.reshape(STEPS, *[1] * (latents.dim() - 1))
        between = torch.lerp(first, last, share).flatten(0, 1)
        save(transform.inverse(between)[0], folder / f"{name}.interpolations.png", STEPS)


def curves(
    lines: Sequence[Line],
    path: Path,
    label: str,
    shown: Callable[[Line, float], float] = lambda _, value: value,
    panel: Callable[[Config], str] = lambda _: "",
) -> None:
    """Draws the ``curve`` of each run that ended well: validation against time, as ``shown`` of a line and a value.

    Runs of other ``panel`` stand side by side, each panel with an axis of its own.
    """
    done = [line for line in lines if "failed" not in line]
    titles = list(dict.fromkeys(panel(line["config"]) for line in done)) or [""]
    size = (5 * len(titles) + 2, 4.5)
    figure, axes = plt.subplots(1, len(titles), figsize=size, squeeze=False, layout="constrained")
    for title, axis in zip(titles, axes[0], strict=True):
        for line in (line for line in done if panel(line["config"]) == title):
            points = [(seconds, shown(line, value)) for seconds, _, value, _ in line["curve"] if value is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label="{model}, seed {seed}".format(**line["config"]))
        axis.set(title=title, xlabel="time of training, s", ylabel=label)
        if axis.lines:
            axis.legend(fontsize=7)
    with replacing(path) as file:
        figure.savefig(file, dpi=100, format="png")
    plt.close(figure)


def flow_of(density: torch.nn.Module) -> fp.Transform:
    """The transform of a density that `common.densities.of_transform` made."""
    return cast(fp.Transform, density.flow)
