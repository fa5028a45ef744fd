"""Tables to fit: from a file, or made of what scikit-learn ships."""

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_sample_images
from torch import Tensor

PARTS = ("train", "val", "test")
EMBEDDED = "breast-cancer"
PHOTOGRAPHS = "photographs"
SIDE = 8  # of patches of photographs
STRIDES = {"train": 3, "val": SIDE, "test": SIDE}  # between them: errors are of rows that share no pixel


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
    """The table of an .npz file with arrays train, val and test; or ``breast-cancer`` or ``photographs``, without one.

    The first is UCI Breast Cancer Wisconsin, logarithms of 30 measurements of 569 cells, shuffled; the second are
    `patches` of two photographs.

    Raises:
        ValueError: The file is not as `stored` needs it, or its arrays are not as `standardised` needs them.

    Example:
        >>> table = load()
        >>> table.name, tuple(table.train.shape), len(table.val), len(table.test)
        ('breast-cancer', (341, 30), 114, 114)
    """
    given = f"an .npz file with arrays train, val and test, or {' or '.join(SHIPPED)}"
    arrays = SHIPPED[str(source)]() if str(source) in SHIPPED else stored(Path(source), PARTS, given)
    return standardised(source, arrays, device, dtype)


def standardised(
    source: str | Path,
    arrays: Mapping[str, np.ndarray],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Table:
    """The table of arrays train, val and test.

    Raises:
        ValueError: The arrays are not as `parts` needs them.
    """
    return Table(Path(source).stem, **parts(source, arrays, device, dtype))


def parts(
    source: str | Path,
    arrays: Mapping[str, np.ndarray],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Arrays by name, train among them, all standardised by the rows of that one.

    Raises:
        ValueError: An array is not a table of finite numbers of one width, of 2 features or more, it has no rows, there
            are no more training rows than features, or a feature is constant in these, where it has no density.
    """
    names = f"{', '.join([*arrays][:-1])} and {[*arrays][-1]}"
    widths = {array.shape[1:] for array in arrays.values()}
    if len(widths) != 1 or any(array.ndim != 2 for array in arrays.values()):
        shapes = ", ".join(f"{part} {array.shape}" for part, array in arrays.items())
        raise ValueError(f"{names} must be tables (rows, features) of one width; {source} has {shapes}")
    for part, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{part} of {source} must hold numbers; got {array.dtype}")
        if not len(array):
            raise ValueError(f"{part} of {source} has no rows: {names} need some each")
        if wrong := int((~np.isfinite(array)).sum()):
            raise ValueError(f"{part} of {source} holds {wrong} NaN or infinite value(s): leave these rows out")
    rows, features = arrays["train"].shape
    if features < 2:
        raise ValueError(f"{source} has {features} feature, and couplings need 2: add a column")
    if rows <= features:
        raise ValueError(f"train of {source} has {rows} rows, of {features} features: it needs more rows than features")
    mean, std = arrays["train"].mean(0), arrays["train"].std(0)
    if not std.all():
        raise ValueError(f"features {np.flatnonzero(std == 0).tolist()} are constant in train: leave them out")
    return {part: torch.tensor((array - mean) / std, dtype=dtype, device=device) for part, array in arrays.items()}


def cells() -> dict[str, np.ndarray]:
    """The measurements of cells, in the order of a fixed seed."""
    return dict(zip(PARTS, np.split(shuffled(measurements()), [341, 455]), strict=True))


def measurements() -> np.ndarray:
    """Of cells, as logarithms: they are positive and skewed, with some zeros."""
    rows: np.ndarray = np.log(load_breast_cancer().data + 0.01)
    return rows


def shuffled(rows: np.ndarray) -> np.ndarray:
    """The rows in the order of a fixed seed."""
    order = torch.randperm(len(rows), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    found: np.ndarray = rows[order.numpy()]
    return found


def patches() -> dict[str, np.ndarray]:
    """Patches of 8 x 8 grey pixels without their mean, 63 features, made as those of BSDS300 are.

    Pixels have uniform noise, from a fixed seed. The left seven tenths of both photographs are to fit, a tenth to
    choose by, the rest to judge by: no two parts share a pixel, nor do two rows to choose or to judge by.

    Reference: Uria, Murray, Larochelle, "RNADE: The real-valued neural autoregressive density-estimator", NeurIPS 2013,
    section 5.2.
    """
    noise = torch.Generator("cpu").manual_seed(0)
    rows: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    for photograph in load_sample_images().images:
        grey = torch.tensor(photograph, dtype=torch.float64).mean(2).round()
        width = grey.shape[1]
        borders = [0, round(0.7 * width), round(0.8 * width), width]
        for part, start, end in zip(PARTS, borders, borders[1:], strict=False):
            found = (
                grey[:, start:end].unfold(0, SIDE, STRIDES[part]).unfold(1, SIDE, STRIDES[part]).reshape(-1, SIDE**2)
            )
            values = (found + torch.rand(found.shape, dtype=found.dtype, generator=noise)) / 256
            rows[part].append((values - values.mean(1, keepdim=True))[:, :-1])  # the last follows from the others
    return {part: torch.cat(found).numpy() for part, found in rows.items()}


SHIPPED: Mapping[str, Callable[[], dict[str, np.ndarray]]] = {EMBEDDED: cells, PHOTOGRAPHS: patches}


def stored(path: Path, names: Sequence[str], given: str) -> dict[str, np.ndarray]:
    """The arrays of these names of an .npz file; ``given`` says what to give where there is none.

    Raises:
        ValueError: There is no such file, it is of another kind or damaged, or it lacks an array.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give {given}")
    write = f"write one by numpy.savez(path, {', '.join(f'{name}=...' for name in names)})"
    wrong = "is no .npz file"
    with path.open("rb") as raw:
        try:
            file = np.load(raw, allow_pickle=False)
            wrong = "is damaged, or holds objects"
            held = None if isinstance(file, np.ndarray) else file.files
            arrays = {name: file[name] for name in names if name in (held or ())}
        # What numpy and zipfile raise of a file that is cut off, flipped in a bit, encrypted, or of objects.
        except (ValueError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error):
            raise ValueError(f"{path} {wrong}: {write}") from None
    if held is None:
        raise ValueError(f"{path} holds one array: {write}")
    if missing := sorted(set(names) - set(arrays)):
        raise ValueError(f"{path} lacks the arrays {missing}, it holds {held}: {write}")
    return arrays
