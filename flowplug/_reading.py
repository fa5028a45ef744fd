"""What is read off a tensor, and off torch, to decide how to go on."""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor, nn

from flowplug._errors import FlowplugError, NonFiniteError, VmapError


def known(flag: Tensor) -> bool | None:
    """The truth of a tensor of one entry; None where `torch.func.vmap` hides it, and no one branch can be taken."""
    try:
        return bool(flag)
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        return None


def known_number(value: Tensor) -> float | None:
    """The one entry of a tensor; None where `torch.func.vmap` hides it."""
    try:
        return float(value.item())
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        return None


def refuse_non_finite(name: str, role: str, x: Tensor) -> None:
    """Raises an error where a tensor holds NaN or infinite values; inside `torch.func.vmap`, which hides them, none.

    Raises:
        NonFiniteError: It does; the message says how many, and where the first is.
    """
    # One kernel: a NaN or infinity anywhere leaves its mark on the sum. So does an overflow, hence the second look.
    if not math.isfinite(known_number(x.sum()) or 0.0) and not (entries := x.isfinite()).all():
        bad = (~entries).nonzero()
        raise NonFiniteError(
            f"{name}: the {role} holds {len(bad)} NaN or infinite value(s), the first at index {tuple(bad[0].tolist())}"
        )


def transformed() -> bool:
    """Whether torch.func differentiates or maps the caller: marking a tensor for autograd is no way there."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def functional() -> bool:
    """Whether torch.func is to take derivatives: inside it, and for the compiler, which knows no `autograd.grad`."""
    return torch.compiler.is_compiling() or transformed()


def exporting() -> bool:
    """Whether the caller is traced by `torch.export`, for a program that runs without Python."""
    # Not by torch.compiler.is_exporting, which to the compiler of torch 2.11 is always true.
    return bool(getattr(torch.compiler, "_is_exporting_flag", False))


def mapped() -> bool:
    """Whether the caller is inside `torch.func.vmap`, or what maps by it: jacrev, jacfwd, hessian."""
    if not transformed():
        return False
    stack = torch._C._functorch.get_interpreter_stack() or []
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in stack)


def hidden(tensor: Tensor) -> bool:
    """Whether `torch.func.vmap` maps over this tensor, such as the weights of an ensemble: no value can be read."""
    functorch = torch._C._functorch
    while not torch.compiler.is_compiling() and functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def refuse_vmap(what: str, instead: str) -> None:
    """Refuses to go on where rows take ways of their own, which a map over rows cannot.

    Args:
        what: What cannot be mapped, and why.
        instead: What to do.

    Raises:
        VmapError: The caller is inside `torch.func.vmap`.
    """
    if mapped():
        raise VmapError(f"{what}, which torch.func.vmap (and so jacrev, jacfwd, hessian) cannot follow: {instead}")


def first_parameter(module: nn.Module) -> Tensor | None:
    """One parameter, in less time than ``parameters()`` takes; that comes first which is not in a part."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    for part in module._modules.values():
        found = None if part is None else first_parameter(part)
        if found is not None:
            return found
    return None


class Later:
    """What is required of a GPU's numbers in training, and looked at once it is known, as no step waits for a GPU.

    An error is raised by the next pass, with the name of what it belongs to; copies and pickles start empty.
    """

    def __init__(self) -> None:
        self._flags: deque[tuple[torch.cuda.Event, Tensor, FlowplugError]] = deque()

    def __reduce__(self) -> tuple[type[Later], tuple[()]]:
        """Events belong to a process."""
        return Later, ()

    def require(self, good: Tensor, message: str, kind: type[FlowplugError]) -> None:
        """Raises what is known of the passes before, and has the flag ``good`` looked at in one of the next.

        Raises:
            FlowplugError: Of this kind, where an earlier flag was False.
        """
        if torch.cuda.is_current_stream_capturing():
            return
        while self._flags and self._flags[0][0].query():  # type: ignore[no-untyped-call]
            _, flag, error = self._flags.popleft()
            if not flag:
                self._flags.clear()
                raise error
        flag = torch.empty((), dtype=torch.bool, device="cpu", pin_memory=True)
        flag.copy_(good, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(good.device))
        self._flags.append((event, flag, kind(message)))
