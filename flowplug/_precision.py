"""What is computed in a precision of its own: outside autocast, and in no less than single precision."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Switch(NamedTuple):
    """Where torch keeps how exact products of single precision are, and what stands for exactly."""

    owner: Any
    name: str
    exact: str | bool


def _switches() -> dict[str, list[_Switch]]:
    backends: Any = torch.backends  # whose parts are not declared
    cuda, cudnn, cpu = backends.cuda.matmul, backends.cudnn, backends.mkldnn
    if hasattr(cudnn, "conv"):
        parts = {"cuda": (cuda, cudnn.conv), "cpu": (cpu.matmul, cpu.conv)}
        return {kind: [_Switch(part, "fp32_precision", "ieee") for part in some] for kind, some in parts.items()}
    return {"cuda": [_Switch(cuda, "allow_tf32", exact=False), _Switch(cudnn, "allow_tf32", exact=False)]}


_SWITCHES = _switches()
_HIGHEST = "highest"


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Leaves autocast, and products of single precision that are rounded to 7 or 10 bits: for bounds and inverses.

    Compiled graphs leave the first alone.
    """
    autocast = autocast_enabled(tensor)
    if torch.compiler.is_compiling():
        return torch.autocast(tensor.device.type, enabled=False) if autocast else nullcontext()
    rounded = [] if tensor.dtype == torch.float64 else _rounded(tensor.device.type)
    return _exactly(tensor.device.type, rounded, autocast=autocast) if rounded or autocast else nullcontext()


def _rounded(kind: str) -> list[tuple[_Switch, str | bool]]:
    """The switches that are not set to what is exact, and what they are set to."""
    found = ((switch, getattr(switch.owner, switch.name)) for switch in _SWITCHES.get(kind, ()))
    return [(switch, value) for switch, value in found if value not in (switch.exact, "none")]


@contextmanager
def _exactly(kind: str, rounded: list[tuple[_Switch, str | bool]], *, autocast: bool) -> Iterator[None]:
    # Whoever comes in the meantime finds them as they should be, and leaves them to the first. An older switch has to
    # agree with the newer ones where it is what the caller used.
    older = _older() if rounded else _HIGHEST
    if older != _HIGHEST:
        torch.set_float32_matmul_precision(_HIGHEST)
    for switch, _ in rounded:
        setattr(switch.owner, switch.name, switch.exact)
    try:
        with torch.autocast(kind, enabled=False) if autocast else nullcontext():
            yield
    finally:
        for switch, value in rounded:
            setattr(switch.owner, switch.name, value)
        if older != _HIGHEST:
            torch.set_float32_matmul_precision(older)


def _older() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the newer ones have the say
        return _HIGHEST


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
