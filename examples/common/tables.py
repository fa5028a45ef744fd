"""Tables to fit: from a file, or the one that scikit-learn ships."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor

PARTS = ("train", "val", "test")
EMBEDDED = "breast-cancer"
WRITE = "write one by numpy.savez(path, train=..., val=..., test=...)"
WRITE = "write one by numpy.savez(path, train=..., val=..., test=...)"


@dataclass(frozen=True)
class Table:
    """Rows to fit, to choose by and to judge by, each ``(rows, features)``, standardised by those to fit."""

    name: str
    train: Tensor
    val: Tensor
    test: Tensor

    @property
    def features(self) -> int:
        """The width."""
        return self.train.shape[1]


def load(
    source: str | Path = EMBEDDED, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Table:
    """The table of an .npz file with arrays train, val and test; or ``breast-cancer``, which needs no file.

    The latter is UCI Breast Cancer Wisconsin, logarithms of 30 measurements of 569 cells, shuffled.

    Raises:
        ValueError: There is no such file, it lacks an array, an array is not a table of finite numbers of one width, or
            a feature is constant in the training rows, where it has no density.

    Example:
        >>> table = load()
        >>> table.name, tuple(table.train.shape), len(table.val), len(table.test)
        ('breast-cancer', (341, 30), 114, 114)
    """
    arrays = embedded() if str(source) == EMBEDDED else stored(Path(source))
    widths = {array.shape[1:] for array in arrays.values()}
    if len(widths) != 1 or any(array.ndim != 2 for array in arrays.values()):
        shapes = ", ".join(f"{part} {array.shape}" for part, array in arrays.items())
        raise ValueError(f"train, val and test must be tables (rows, features) of one width; {source} has {shapes}")
    for part, array in arrays.items():
        if wrong := int((~np.isfinite(array)).sum()):
            raise ValueError(f"{part} of {source} holds {wrong} NaN or infinite value(s): leave these rows out")
    mean, std = arrays["train"].mean(0), arrays["train"].std(0)
    if not std.all():
        raise ValueError(f"features {np.flatnonzero(std == 0).tolist()} are constant in train: leave them out")
    parts = {part: torch.tensor((array - mean) / std, dtype=dtype, device=device) for part, array in arrays.items()}
    return Table(Path(source).stem, **parts)


def embedded() -> dict[str, np.ndarray]:
    """The table of scikit-learn, in the order of a fixed seed."""
    rows = np.log(load_breast_cancer().data + 0.01)  # positive and skewed, with some zeros
    order = torch.randperm(len(rows), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    return dict(zip(PARTS, np.split(rows[order.numpy()], [341, 455]), strict=True))


def stored(path: Path) -> dict[str, np.ndarray]:
    """The three arrays of a file."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give an .npz file with arrays train, val and test, or {EMBEDDED}")
    with path.open("rb") as raw:
        try:
            file = np.load(raw, allow_pickle=False)
        except (ValueError, EOFError, zipfile.BadZipFile):
            raise ValueError(f"{path} is no .npz file: {WRITE}") from None
        if isinstance(file, np.ndarray):
            raise ValueError(f"{path} holds one array: {WRITE}")
        if missing := set(PARTS) - set(file.files):
            raise ValueError(f"{path} lacks the arrays {sorted(missing)}; it holds {file.files}")
        return {part: file[part] for part in PARTS}
