"""Peak memory of a training pass of the published flow, by how its series is differentiated (Table 1)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

import flowplug as fp
from common.command import OptionError, positive, refuse, writable
from common.densities import log_prob
from common.memory import STATUS, peak_alone
from common.provenance import provenance
from common.report import append_line, markdown

Make = Callable[[fp.Terms], fp.LogDet]

GRADIENTS: dict[str, Make] = {
    "series differentiated (Autograd)": lambda terms: fp.PowerSeries(terms=terms, gradient=fp.Autograd()),
    "Neumann series": lambda terms: fp.PowerSeries(terms=terms),
    "Neumann series, recomputed": lambda terms: fp.PowerSeries(terms=terms, gradient=fp.Recompute()),
    "default": lambda terms: fp.Krylov(terms=terms),
}


@dataclass(frozen=True)
class Memory:
    """Memory: by how much the peak of one forward and backward pass exceeds the idle process, each in its own."""

    event_shape: tuple[int, int, int] = (1, 8, 8)  # channels, height, width
    blocks: int = 2  # residual blocks at each scale
    scales: int = 2  # squeezes, and one
    hidden: int = 32  # channels of hidden layers
    batch: int = 64  # images
    terms: int = 10  # of the series
    out: Path = Path("images_out")  # folder to whose memory.jsonl lines are added

    def __post_init__(self) -> None:
        positive(self, "blocks", "scales", "hidden", "batch", "terms")
        writable(self)
        if min(self.event_shape) < 1 or any(side % 2 ** (self.scales - 1) for side in self.event_shape[1:]):
            raise OptionError(f"--event-shape needs sides that halve --scales - 1 times; got {self.event_shape}")

    def execute(self) -> None:
        """Measures, and adds a line for each."""
        if not STATUS.exists():
            refuse(f"memory reads {STATUS}, which this system has not: run it on Linux")
        peaks = {}
        for name in tqdm(GRADIENTS):
            work = partial(step, self, name)
            peaks[name] = peak_alone(partial(work, 2), partial(work, self.batch))
        setting = {key: value for key, value in vars(self).items() if key != "out"}
        versions = provenance("cpu", "examples/images")
        for name, peak in peaks.items():
            line = {"gradient": name, "peak_mib": round(peak, 1), "setting": setting, "versions": versions}
            append_line(self.out / "memory.jsonl", line)
        first = next(iter(peaks.values()))
        rows = [[name, f"{peak:.0f}", f"{100 * peak / first:.0f}"] for name, peak in peaks.items()]
        print(f"\n{markdown(['log-det', 'peak, MiB', 'share, %'], rows)}\n\nadded to {self.out / 'memory.jsonl'}")


def step(settings: Memory, name: str, rows: int) -> None:
    """Forward and backward of one batch."""
    stack = fp.PublishedImageStack(
        settings.event_shape,
        (settings.blocks,) * settings.scales,
        (settings.hidden,) * 2,
        dense_transforms=0,
        logdet=GRADIENTS[name](fp.Truncated(settings.terms)),
    )
    x = torch.rand(rows, *settings.event_shape)
    stack.start(x)
    torch.autograd.backward(-log_prob(stack, x).mean())
