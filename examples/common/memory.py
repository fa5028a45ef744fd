"""Peak memory, in MiB: of an accelerator, of the whole process, or of a piece of work in a process of its own."""

import multiprocessing
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

Work = Callable[[], object]
# On Linux getrusage tells no less than what the parent had in use when it started this process.
STATUS = Path("/proc/self/status")


def reset(device: str | torch.device = "cpu") -> None:
    """Starts the peak of an accelerator anew; that of a process cannot be."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: str | torch.device = "cpu") -> float:
    """The most memory of the accelerator since `reset`, or resident memory of this process since it started."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if STATUS.exists() and "VmHWM" in STATUS.read_text():
        return _resident("VmHWM")
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident / 2**20 if sys.platform == "darwin" else resident / 2**10


def peak_alone(warm: Work, work: Work) -> float:
    """The peak of ``work`` in a fresh process, beyond what is in use before it (Linux).

    Args:
        warm: Done first, such as a small case of the same: it loads what torch loads at first use.
        work: What is measured. Both are pickled: functions of a module, or partial ones.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["common.densities", "common.tables"])  # seconds that each process would take
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_beyond, warm, work).result()


def _beyond(warm: Work, work: Work) -> float:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warm()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
    work()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    return int(STATUS.read_text().split(f"{field}:")[1].split()[0]) / 2**10
