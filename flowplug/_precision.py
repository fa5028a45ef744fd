"""What is computed in a precision of its own: outside autocast, and in no less than single precision."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Leaves autocast: neither a bound nor an inverse comes from products in half precision."""
    kind = tensor.device.type
    enabled = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if enabled else nullcontext()


def at_least_single(tensor: Tensor) -> Tensor:
    """In single precision instead of half, which decompositions do not have and in which powers under- or overflow."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
