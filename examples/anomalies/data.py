"""Tables with labels: rows of what is normal, to fit, to choose by and to judge by, and anomalies to judge by."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor

from common.tables import PARTS, Table, measurements, parts, shuffled, stored

ANOMALIES = "anomalies"


@dataclass(frozen=True)
class Labelled(Table):
    """Normal rows, and anomalies ``(rows, features)``, standardised by the normal ones to fit."""

    anomalies: Tensor


def cells() -> dict[str, np.ndarray]:
    """UCI Breast Cancer Wisconsin: the cells of benign tumours are normal, those of malignant ones are not."""
    return divided(measurements(), load_breast_cancer().target == 1)


def digits() -> dict[str, np.ndarray]:
    """UCI handwritten digits, 64 counts from 0 to 16 with uniform noise: 0 to 4 are normal, 5 to 9 are not."""
    counts, labels = load_digits(return_X_y=True)
    noise = torch.Generator("cpu").manual_seed(0)
    return divided(counts + torch.rand(counts.shape, dtype=torch.float64, generator=noise).numpy(), labels < 5)


def divided(rows: np.ndarray, normal: np.ndarray) -> dict[str, np.ndarray]:
    """Three fifths of the normal rows to fit, a fifth to choose by, a fifth to judge by, and all others."""
    kept = shuffled(rows[normal])
    borders = [3 * len(kept) // 5, 4 * len(kept) // 5]
    return dict(zip(PARTS, np.split(kept, borders), strict=True)) | {ANOMALIES: rows[~normal]}


SHIPPED: Mapping[str, Callable[[], dict[str, np.ndarray]]] = {"breast-cancer": cells, "digits": digits}


def load(source: str | Path, device: str | torch.device = "cpu") -> Labelled:
    """A table by its name in `SHIPPED`, or of an .npz file with arrays train, val, test and anomalies.

    Raises:
        ValueError: The file is not as `common.tables.stored` needs it, or its arrays are not as `parts` needs them.

    Example:
        >>> table = load("breast-cancer")
        >>> [len(part) for part in (table.train, table.val, table.test, table.anomalies)], table.features
        ([214, 71, 72, 212], 30)
    """
    names = (*PARTS, ANOMALIES)
    given = f"an .npz file with arrays train, val, test and {ANOMALIES}, or {' or '.join(SHIPPED)}"
    arrays = SHIPPED[str(source)]() if str(source) in SHIPPED else stored(Path(source), names, given)
    return Labelled(Path(source).stem, **parts(source, arrays, device))
