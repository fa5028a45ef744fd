"""Images to fit: from a file, or the digits that scikit-learn ships."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import flowplug as fp
from common import tables
from common.tables import PARTS

EMBEDDED = "digits"
LEVELS, EMBEDDED_LEVELS = 256, 17
FORM = (
    "arrays train, val and test of uint8, (n, H, W) or (n, C, H, W), and train_labels, val_labels and test_labels, (n,)"
)


@dataclass(frozen=True)
class Part:
    """Pixels ``(n, C, H, W)`` of uint8, and labels ``(n,)`` from 0."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def first(self, rows: int) -> "Part":
        """At most so many rows."""
        return Part(self.pixels[:rows], self.labels[:rows])


@dataclass(frozen=True)
class Images:
    """Images to fit, to choose by and to judge by."""

    name: str
    train: Part
    val: Part
    test: Part
    levels: int
    classes: int

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Sizes ``(C, H, W)``."""
        return tuple(self.train.pixels.shape[1:])

    @property
    def coloured(self) -> bool:
        """Whether these are taken for photographs, whose mirror images are as likely."""
        return self.event_shape[0] > 1

    def dequantised(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Floats in [0, 1): uniform noise within each level."""
        return fp.Dequantize(self.levels)(pixels, generator=generator)

    def fixed(self, part: Part, rows: int) -> tuple[Tensor, Tensor]:
        """At most so many rows of a part and their labels, with noise that is the same for every model."""
        generator = torch.Generator(part.pixels.device).manual_seed(0)
        some = part.first(rows)
        return self.dequantised(some.pixels, generator), some.labels


def load(source: str | Path = EMBEDDED, device: str | torch.device = "cpu") -> Images:
    """The images of an .npz file, or ``digits``, which need no file: 1,797 of 8 x 8 pixels and 17 levels.

    Raises:
        ValueError: There is no such file, it is damaged, it lacks an array, or an array has another form.

    Example:
        >>> images = load()
        >>> images.event_shape, images.levels, len(images.train), len(images.val), len(images.test)
        ((1, 8, 8), 17, 1197, 300, 300)
    """
    if str(source) == EMBEDDED:
        return made(EMBEDDED, embedded(), EMBEDDED_LEVELS, device)
    path = Path(source)
    return made(path.stem, stored(path), LEVELS, device)


def made(name: str, arrays: Mapping[str, np.ndarray], levels: int, device: str | torch.device) -> Images:
    """Images of arrays, once these have been checked."""
    shapes = ", ".join(f"{key} {array.dtype} {array.shape}" for key, array in arrays.items())
    images = [arrays[part] for part in PARTS]
    labels = [arrays[label_name(part)] for part in PARTS]
    if len({array.shape[1:] for array in images}) > 1 or any(array.ndim not in (3, 4) for array in images):
        raise ValueError(f"{name} needs images of one size, {FORM}; got {shapes}")
    if any(array.dtype != np.uint8 for array in images):
        raise ValueError(f"{name} needs pixels as they were stored, {FORM}; got {shapes}")
    pairs = zip(images, labels, strict=True)
    whole = all(label.dtype.kind in "iu" and label.shape == array.shape[:1] for array, label in pairs)
    if not whole:
        raise ValueError(f"{name} needs a label for each image, {FORM}; got {shapes}")
    if small := [part for part, array in zip(PARTS, images, strict=True) if len(array) < 2 or not array.size]:
        raise ValueError(f"{name} needs at least 2 images in each of train, val and test; {small[0]} has too few")
    if any(side % 2 for side in images[0].shape[-2:]):
        raise ValueError(f"{name} needs images of even height and width, as they are squeezed; got {shapes}: pad them")
    if any(int(label.min()) < 0 for label in labels):
        raise ValueError(f"{name} needs labels from 0; got some below")
    highest = max(int(array.max()) for array in images)
    if highest >= levels:
        raise ValueError(f"{name} needs pixels from 0 to {levels - 1}; got {highest}")
    parts = [
        Part(
            torch.tensor(array if array.ndim == 4 else array[:, None], device=device),
            torch.tensor(label.astype(np.int64), device=device),
        )
        for array, label in zip(images, labels, strict=True)
    ]
    return Images(name, parts[0], parts[1], parts[2], levels, 1 + max(int(label.max()) for label in labels))


def embedded() -> dict[str, np.ndarray]:
    """The digits of scikit-learn, in the order of a fixed seed."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator("cpu").manual_seed(0), device="cpu").numpy()
    pixels, labels = digits.images[order].astype(np.uint8), digits.target[order]
    cuts = [len(order) - 600, len(order) - 300]
    split = zip(PARTS, np.split(pixels, cuts), np.split(labels, cuts), strict=True)
    return {key: array for part, image, label in split for key, array in ((part, image), (label_name(part), label))}


def stored(path: Path) -> dict[str, np.ndarray]:
    """The six arrays of a file."""
    names = [name for part in PARTS for name in (part, label_name(part))]
    return tables.stored(path, names, f"an .npz file with {FORM}, or {EMBEDDED}")


def label_name(part: str) -> str:
    """The array of a part's labels."""
    return f"{part}_labels"
