"""What networks are made of, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from flowplug._arguments import require_bools, require_ints, require_numbers, require_positive
from flowplug._errors import LipschitzError, ShapeError
from flowplug.branch import bound_in, on_meta
from flowplug.lipschitz.norms import NetworkNorm, OperatorNorm


def check_sizes(
    name: str, bound: float, context_features: int, *, zero_last: bool, **sizes: int | Sequence[int]
) -> None:
    """Refuses what no network can be made of.

    Raises:
        TypeError: An argument is of another kind.
        LipschitzError: ``bound`` is not in (0, 1).
        ShapeError: A size is not positive, or ``context_features`` negative.
    """
    require_bools(name, zero_last=zero_last)
    require_ints(name, context_features=context_features)
    if context_features < 0:
        raise ShapeError(f"{name}(context_features=...) must not be negative; got {context_features}")
    require_numbers(name, bound=bound)
    if not 0 < bound < 1:
        raise LipschitzError(f"{name}(bound=...) must be in (0, 1), else x + g(x) may not invert; got {bound}")
    require_positive(name, **sizes)


def norms_of(
    name: str, norm: OperatorNorm | NetworkNorm | Sequence[OperatorNorm], count: int
) -> Sequence[OperatorNorm | NetworkNorm]:
    """What bounds each layer: a norm of its own, or that of the network.

    Raises:
        LipschitzError: Another number of norms is given than there are layers, or something else.
    """
    if isinstance(norm, OperatorNorm):
        return norm.chain(count)
    if isinstance(norm, NetworkNorm):
        return [norm] * count
    if not (isinstance(norm, Sequence) and all(isinstance(inner, OperatorNorm) for inner in norm)):
        raise LipschitzError(
            f"{name}(norm=...) must be a norm of layers (Gram(), InfNorm(), ...), a list of them, or one of the whole "
            f"network (PathNorm()); got {norm}"
        )
    if len(norm) != count:
        raise LipschitzError(f"{name} has {count} layers and needs one norm for all, or as many; got {len(norm)}")
    return norm


def make_activation(
    make: Callable[[], nn.Module], norm: OperatorNorm | NetworkNorm, width: int, *, spatial: int
) -> tuple[nn.Module, int]:
    """An activation behind a layer of this norm and width, and the width it returns.

    Raises:
        TypeError: ``make`` is a module, or cannot be called.
        LipschitzError: Its bound is unknown, above 1, or that of an element-wise module, which it is not.
    """
    if isinstance(make, nn.Module) or not callable(make):
        raise TypeError(f"activation=... must make a module, such as SineHuber or lambda: Swish(1.0); got {make!r}")
    try:
        module = make()
    except TypeError as error:
        raise TypeError(f"activation=... is called without arguments: {error}") from error
    if not isinstance(module, nn.Module):
        raise TypeError(f"activation=... must make a module, such as SineHuber or lambda: Swish(1.0); made {module!r}")
    with torch.no_grad():
        made = int(module(torch.zeros(1, width, *[1] * spatial)).shape[1])
    if on_meta(module):
        return module, made
    bound = bound_in(module, norm.lowest() if isinstance(norm, OperatorNorm) else norm.order)
    if not float(bound) <= 1:
        raise LipschitzError(f"{type(module).__name__} has the bound {bound}, above 1")
    if bound.elementwise and made != width:
        raise LipschitzError(
            f"{type(module).__name__} is declared element-wise, and makes {made} channels of {width}: register its "
            "bound without elementwise=True"
        )
    return module, made
