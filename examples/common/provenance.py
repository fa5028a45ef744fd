"""Which code made a result, and on what."""

import datetime
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

import flowplug as fp

ROOT = Path(__file__).parents[2]
CODE = ("flowplug", "adapters", "examples/common", "examples/uci")
PACKAGES = ("torch", "nflows", "normflows", "zuko")


def provenance(device: str | torch.device = "cpu", *scripts: str) -> dict[str, str | None]:
    """Versions of flowplug, of its code in git, of Python and what flowplug stands on; the device, and the date.

    The code is the packages, what the examples share, and the scripts named: paths in the repository.

    Example:
        >>> sorted(provenance())
        ['commit', 'date', 'device', 'flowplug', 'nflows', 'normflows', 'python', 'torch', 'zuko']
    """
    return {
        "flowplug": fp.__version__,
        "commit": commit(ROOT, *scripts),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "device": device_name(torch.device(device)),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def commit(root: Path = ROOT, *scripts: str) -> str | None:
    """The last commit of the code, ``+changes`` where it has some since; None outside a checkout.

    Results are no part of the code, so that committing them does not change its name.
    """
    name = git(root, "log", "-1", "--abbrev=7", "--format=%h", "--", *CODE, *scripts)
    if not name:
        return None
    return f"{name}+changes" if git(root, "status", "--porcelain", "--", *CODE, *scripts) else name


def git(root: Path, *arguments: str) -> str:
    """What git prints, nothing where it fails or is not there."""
    try:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def device_name(device: torch.device) -> str:
    """The accelerator's own name, or the processor's kind and its widest vectors that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return str(device)
