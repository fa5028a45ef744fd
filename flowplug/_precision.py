"""What is computed in a precision of its own: outside autocast, and in no less than single precision."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Leaves autocast: neither a bound nor an inverse comes from products in half precision."""
    return torch.autocast(tensor.device.type, enabled=False) if autocast_enabled(tensor) else nullcontext()


def autocast_enabled(tensor: Tensor) -> bool:
    """Whether products with a tensor may be in half precision."""
    kind = tensor.device.type
    # Older compilers follow the second question alone.
    available = torch.compiler.is_compiling() or torch.amp.is_autocast_available(kind)
    return available and torch.is_autocast_enabled(kind)


def at_least_single(tensor: Tensor) -> Tensor:
    """In single precision instead of half, which decompositions do not have and in which powers under- or overflow."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in this dtype; where it has it already, at no cost."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
