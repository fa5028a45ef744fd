"""The five tables on which density models are compared, read from their published archive as it was published.

Papamakarios et al. (2017), "Masked Autoregressive Flow for Density Estimation", chose and preprocessed POWER, GAS,
HEPMASS and MINIBOONE (UCI repository) and BSDS300 (8x8 image patches); the raw tables are Zenodo record 1161203. Every
later paper compares on the outcome, so the recipes here keep its quirks; each function below names those of its table.
"""

import importlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO

import numpy as np
import pooch
import requests
import torch
from tqdm import tqdm

from common import tables
from common.report import replacing
from common.tables import PARTS

URL = "https://zenodo.org/record/1161203/files/data.tar.gz"
CHECKSUM = "md5:9b9c9b0375315ad270eba4ce80c093ab"  # as other projects that read the archive check it

Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Table(tables.Table):
    """A table, and whether it is the published one, to the row."""

    published: bool


@dataclass(frozen=True)
class Recipe:
    """How a published table is made of members of the archive, and its shape: rows of train, val and test, features."""

    members: tuple[str, ...]
    make: Callable[..., Parts]
    rows: tuple[int, int, int]
    features: int


def split(rows: np.ndarray) -> Parts:
    """The last tenth to test, the last tenth of the rest to validate; in the order of the file."""
    rest, test = np.split(rows, [len(rows) - len(rows) // 10])
    train, val = np.split(rest, [len(rest) - len(rest) // 10])
    return train, val, test


def standardise(train: np.ndarray, val: np.ndarray, test: np.ndarray) -> Parts:
    """By mean and standard deviation of train and val together."""
    fitted = np.concatenate([train, val])
    mean, std = fitted.mean(0), fitted.std(0)
    return (train - mean) / std, (val - mean) / std, (test - mean) / std


def power(file: IO[bytes]) -> Parts:
    """Household power: shuffled, two of eight columns dropped, uniform noise of a unit of reading on five others.

    The noise is drawn after the shuffle from the same stream, that of the voltage first.
    """
    rows = np.load(file, allow_pickle=False)
    if rows.ndim != 2 or rows.shape[1] != 8:
        raise ValueError(f"the raw table has shape {rows.shape}, not (rows, 8)")
    # NumPy's legacy stream of this seed is part of the published table: torch's generator cannot reproduce it.
    generator = np.random.RandomState(42)
    generator.shuffle(rows)
    rows = np.delete(rows, [1, 3], axis=1)  # global reactive power and intensity
    voltage = 0.01 * generator.rand(len(rows), 1)
    active = 0.001 * generator.rand(len(rows), 1)
    meters = generator.rand(len(rows), 3)
    return standardise(*split(rows + np.hstack([active, voltage, meters, np.zeros((len(rows), 1))])))


def gas(file: IO[bytes]) -> Parts:
    """Gas sensors: columns go until none correlate above 0.98, the first first; standardised by all rows, test too.

    Rows stay in the order of time, so that validation and test rows come from the end of the experiment.
    """
    frame = optional("pandas", "GAS").read_pickle(file, compression=None).drop(columns=["Meth", "Eth", "Time"])
    while (crowded := (frame.corr() > 0.98).to_numpy().sum(1) > 1).any():
        frame = frame.drop(columns=frame.columns[int(np.argmax(crowded))])
    return split(((frame - frame.mean()) / frame.std()).to_numpy())


def hepmass(train_file: IO[bytes], test_file: IO[bytes]) -> Parts:
    """Particle collisions: those of class 1; the test file has one column too many, which is its last.

    Columns with discrete values are meant to go; the published rule drops those whose *smallest* value occurs more than
    five times, and keeps other repeated values. Mean and standard deviation are those of train and val.
    """
    pandas = optional("pandas", "HEPMASS")
    frames = (pandas.read_csv(file, index_col=False) for file in (train_file, test_file))
    rows, test = (frame[frame.iloc[:, 0] == 1].iloc[:, 1:].to_numpy(np.float64) for frame in frames)
    if rows.shape[1] != test.shape[1] - 1:
        raise ValueError(f"{rows.shape[1]} columns to train on need one more to test on, not {test.shape[1]}")
    mean, std = rows.mean(0), rows.std(0, ddof=1)
    rows, test = (rows - mean) / std, (test[:, :-1] - mean) / std
    kept = (rows == rows.min(0)).sum(0) <= 5
    train, val = np.split(rows[:, kept], [len(rows) - len(rows) // 10])
    return train, val, test[:, kept]


def miniboone(file: IO[bytes]) -> Parts:
    """Neutrino events: cleaned before they were published; in the order of the file."""
    return standardise(*split(np.load(file, allow_pickle=False)))


def bsds300(file: IO[bytes]) -> Parts:
    """Image patches less their mean, without the last pixel: split before they were published, and not standardised."""
    with optional("h5py", "BSDS300").File(file, "r") as parts:
        return parts["train"][:], parts["validation"][:], parts["test"][:]


RECIPES = {
    "POWER": Recipe(("power/data.npy",), power, (1_659_917, 184_435, 204_928), 6),
    "GAS": Recipe(("gas/ethylene_CO.pickle",), gas, (852_174, 94_685, 105_206), 8),
    "HEPMASS": Recipe(("hepmass/1000_train.csv", "hepmass/1000_test.csv"), hepmass, (315_123, 35_013, 174_987), 21),
    "MINIBOONE": Recipe(("miniboone/data.npy",), miniboone, (29_556, 3_284, 3_648), 43),
    "BSDS300": Recipe(("BSDS300/BSDS300.hdf5",), bsds300, (1_000_000, 50_000, 250_000), 63),
}


def optional(package: str, table: str) -> ModuleType:
    """The module, if it is installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{table} is stored in a format of {package}: pip install {package}") from error


def download(url: str, checksum: str | None, folder: Path) -> Path:
    """The archive, from ``folder`` if it is there; a download that broke off goes on from its ``.part``.

    Raises:
        ValueError: The file has another checksum.
        requests.RequestException: There is no connection, or it broke off: call again.
    """
    part = folder / "data.tar.gz.part"

    def resume(url: str, target: str, _: object) -> None:
        have = part.stat().st_size if part.exists() else 0
        headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
        with requests.get(url, headers=headers, stream=True, timeout=60) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                part.unlink()
                raise requests.RequestException(f"{url} is not longer than {part}, now deleted: run this again")
            response.raise_for_status()
            have = have if response.status_code == requests.codes.partial_content else 0
            total = have + int(response.headers.get("Content-Length", 0))
            bar = tqdm(total=total, initial=have, desc=part.stem, unit="B", unit_scale=True)
            with bar, part.open("ab" if have else "wb") as file:
                for chunk in response.iter_content(2**16):
                    bar.update(file.write(chunk))
        os.replace(part, target)

    return Path(pooch.retrieve(url, checksum, fname=part.stem, path=folder, downloader=resume))


def members(archive: Path, wanted: Sequence[str]) -> list[IO[bytes]]:
    """Files of the archive, in memory.

    Raises:
        ValueError: The archive is damaged, or lacks one; the message says which.
    """
    found: dict[str, IO[bytes]] = {}
    seen = []
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                seen.append(member.name)
                for name in wanted:
                    if f"/{member.name}".endswith(f"/{name}") and (file := tar.extractfile(member)):
                        found[name] = io.BytesIO(file.read())
            while tar.fileobj and tar.fileobj.read(2**20):  # to the checksum, the only sign of some damage
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{archive} is damaged ({error}): delete it and get it again") from error
    if missing := sorted(set(wanted) - set(found)):
        raise ValueError(f"{archive} lacks {missing}; it holds {seen[:20]}")
    return [found[name] for name in wanted]


def prepare(name: str, archive: Path) -> Path:
    """Makes ``name.npz`` beside the archive, unless it is there and not older.

    Raises:
        ValueError: The archive is damaged, lacks a member, or a member is not the published one's like.
        ImportError: The format needs a package that is not installed.
    """
    recipe, target = RECIPES[name], archive.parent / f"{name}.npz"
    if target.exists() and target.stat().st_mtime >= archive.stat().st_mtime:
        return target
    files = members(archive, recipe.members)
    try:
        parts = recipe.make(*files)
    except ImportError:
        raise
    except Exception as error:  # a damaged pickle or hdf5 raises anything
        raise ValueError(f"{' and '.join(recipe.members)} of {archive} cannot be read as {name}: {error}") from error
    shapes = [part.shape for part in parts]
    if any(shape[1:] != (recipe.features,) for shape in shapes) or not all(np.isfinite(p).all() for p in parts):
        raise ValueError(f"{name} of {archive} must have {recipe.features} columns of finite numbers; it has {shapes}")
    with replacing(target) as file:
        train, val, test = (rows.astype(np.float32) for rows in parts)
        np.savez(file, train=train, val=val, test=test)
    return target


def load(
    source: str, archive: Path | None, url: str, checksum: str | None, folder: Path, device: torch.device
) -> Table:
    """A published table by its name; or, as `common.tables.load` has them, an .npz file, or one that needs none.

    Raises:
        ValueError: The file or the archive is not what it should be.
    """
    if source not in RECIPES:
        return Table(**vars(tables.load(source, device)), published=False)
    recipe = RECIPES[source]
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(prepare(source, archive or download(url, checksum, folder))) as file:
        parts = {part: torch.tensor(file[part]) for part in PARTS}
    published = tuple(len(part) for part in parts.values()) == recipe.rows
    return Table(source, **{part: rows.to(device) for part, rows in parts.items()}, published=published)
