"""What stands between the call of a module and its forward: a bound, or a network in closed form, would miss it."""

from typing import Final

from torch import nn

from flowplug._errors import LipschitzError

_WAYS_OUT: Final = {
    "WeightNorm": "use torch.nn.utils.parametrizations.weight_norm, which is part of the weight itself",
    "SpectralNorm": "use a norm of flowplug such as Gram(), or torch.nn.utils.parametrizations.spectral_norm",
    "BasePruningMethod": "make the pruning permanent by torch.nn.utils.prune.remove, or write the mask as one of "
    "torch.nn.utils.parametrize",
    "FSDPState": "pass the whole flow, or its transforms, to fully_shard, but no part of g",
}
_OTHERWISE: Final = (
    "remove it, or make what it does part of a module of your own, with its bound registered by "
    "@flowplug.lipschitz_bound.register"
)


def require_plain(g: nn.Module, *, itself: bool = True) -> None:
    """Refuses a g whose value or Jacobian is not that of the forwards of its parts.

    Args:
        g: The branch.
        itself: Whether g itself must be plain too: not where its forward is called.

    Raises:
        LipschitzError: A part has a hook, or a forward of the instance's own.
    """
    waiting: list[nn.Module | None] = [g]
    while waiting:  # half the time of g.modules(), in every pass
        part = waiting.pop()
        if part is None:
            continue
        waiting.extend(part._modules.values())
        if (
            part._forward_pre_hooks
            or part._forward_hooks
            or part._backward_pre_hooks
            or part._backward_hooks
            or "forward" in part.__dict__
        ) and (itself or part is not g):
            raise LipschitzError(_refusal(g, part))


def _refusal(g: nn.Module, part: nn.Module) -> str:
    name = next(name for name, module in g.named_modules() if module is part)
    owner = type(g).__name__ if part is g else f"{type(g).__name__}, part {name} = {type(part).__name__},"
    found, way_out = _describe(part)
    return f"g = {owner} has {found}, of which its Lipschitz bound and Jacobian know nothing: {way_out}"


def _describe(part: nn.Module) -> tuple[str, str]:
    kinds = {
        "a forward pre-hook": part._forward_pre_hooks,
        "a forward hook": part._forward_hooks,
        "a backward pre-hook": part._backward_pre_hooks,
        "a backward hook": part._backward_hooks,
    }
    for kind, hooks in kinds.items():
        for hook in hooks.values():
            owner = getattr(hook, "__self__", hook)
            names = [base.__name__ for base in type(owner).__mro__]
            way_out = next((_WAYS_OUT[name] for name in names if name in _WAYS_OUT), _OTHERWISE)
            return f"{kind}, {getattr(hook, '__qualname__', names[0])}", way_out
    return "a forward of its own, not that of its class", _OTHERWISE
