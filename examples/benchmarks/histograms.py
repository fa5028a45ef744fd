"""Measures what the distributions of pixels are worth before any training, in bits per dimension of test images.

A start alone, on a standard normal: a `HistogramGaussianization` of every pixel, and a `Whitening` of all behind it,
both from the training images, given several times with other noise. Grey levels k of K are dequantised as (k + u) / K;
bits per dimension are those of the levels, so that images of even noise take log2 K. Flows of real numbers that start
from the same images stand beside: the whitening alone, and behind a `MarginalGaussianization` of every pixel.

    python examples/benchmarks/histograms.py                       # the 8 x 8 digits that scikit-learn ships
    python examples/benchmarks/histograms.py --data mnist.npz      # arrays train and test of bytes, (images, ...)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

import flowplug as fp
from benchmarks.measurements import Figure, Measurement, Recorded, run
from common.command import refusing
from common.densities import log_prob
from common.tables import stored

DIGITS = "digits"


@dataclass(frozen=True)
class Settings(Recorded):
    """What to start from, and what to judge by."""

    data: str = DIGITS  # .npz file with arrays train and test of bytes, or digits
    images: int = 12_000  # of the training images, to start from
    noises: int = 4  # with which each is given
    test: int = 1000  # images


def loaded(settings: Settings) -> tuple[int, Tensor, Tensor]:
    """The number of levels, and the levels ``(images, pixels)`` to start from and to judge by."""
    if settings.data == DIGITS:
        levels = torch.tensor(load_digits().images, dtype=torch.float32).flatten(1)
        return 17, levels[:1297], levels[1297:]
    given = f"an .npz file with arrays train and test, or {DIGITS}"
    arrays = stored(Path(settings.data), ("train", "test"), given)
    forms = {(array.dtype.name, array.shape[1:]) for array in arrays.values()}
    if len(forms) > 1 or any(array.dtype != np.uint8 or array.ndim < 2 or not array.size for array in arrays.values()):
        got = ", ".join(f"{part} {array.dtype} {array.shape}" for part, array in arrays.items())
        raise ValueError(f"train and test must be images of bytes of one size; {settings.data} has {got}")
    train, test = (torch.tensor(arrays[part], dtype=torch.float32).flatten(1) for part in ("train", "test"))
    return 256, train[: settings.images], test[: settings.test]


@torch.no_grad()
def measure(settings: Settings) -> Iterator[Measurement]:
    """All starts, of the same images."""
    with refusing():
        levels, train, test = loaded(settings)
    pixels = train.shape[1]
    rows = torch.cat([dequantised(train, levels) for _ in range(settings.noises)])
    new = dequantised(test, levels)
    flows: dict[str, fp.Transform] = {
        "histograms": fp.HistogramGaussianization(pixels, levels=levels),
        "whitening": fp.Whitening(pixels),
        "splines, whitening": fp.ComposedTransform(fp.MarginalGaussianization(pixels), fp.Whitening(pixels)),
        "histograms, whitening": fp.ComposedTransform(
            fp.HistogramGaussianization(pixels, levels=levels), fp.Whitening(pixels)
        ),
    }
    figures = {}
    for name, flow in tqdm(flows.items()):
        flow.start(rows)
        bits = torch.cat([bits_per_dimension(flow.eval(), part, levels) for part in torch.split(new, 100)])
        figures[name] = Figure(float(bits.mean()), "bits/dim", 2 * float(bits.std()) / math.sqrt(len(bits)))
    setting = {"data": Path(settings.data).stem, "pixels": pixels, "images": len(train), "noises": settings.noises}
    yield "Pixels before training", setting, figures


def dequantised(grey: Tensor, levels: int) -> Tensor:
    """Grey levels with noise that fills the cells, in [0, 1]."""
    return (grey + torch.rand(grey.shape)) / levels


def bits_per_dimension(flow: fp.Transform, x: Tensor, levels: int) -> Tensor:
    """Those of each image ``(rows, pixels)`` in [0, 1]."""
    return math.log2(levels) - log_prob(flow, x) / x.shape[1] / math.log(2)


if __name__ == "__main__":
    run(measure, Settings, __doc__)
