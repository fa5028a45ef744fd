"""Peak memory, in MiB: of an accelerator, or of the whole process on the CPU."""

import resource
import sys

import torch


def reset(device: str | torch.device = "cpu") -> None:
    """Starts the peak of an accelerator anew; that of a process cannot be."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: str | torch.device = "cpu") -> float:
    """The most memory of the accelerator since `reset`, or resident memory of this process since it started."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident / 2**20 if sys.platform == "darwin" else resident / 2**10
