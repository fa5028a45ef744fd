"""What is read off a tensor, and off torch, to decide how to go on."""

import torch
from torch import Tensor

from flowplug._errors import VmapError


def known(flag: Tensor) -> bool | None:
    """The truth of a tensor of one entry; None where `torch.func.vmap` hides it, and no one branch can be taken."""
    try:
        return bool(flag)
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        return None


def transformed() -> bool:
    """Whether torch.func differentiates or maps the caller: marking a tensor for autograd is no way there."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def mapped() -> bool:
    """Whether the caller is inside `torch.func.vmap`, or what maps by it: jacrev, jacfwd, hessian."""
    if not transformed():
        return False
    stack = torch._C._functorch.get_interpreter_stack() or []
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in stack)


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
