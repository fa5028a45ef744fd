"""What constructors of dense transforms ask of their arguments."""

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowplug._errors import ContextError, ShapeError
from flowplug._precision import at_least_single
from flowplug._transform import Transform


def whole(name: str, value: Any, *, least: int = 1) -> int:  # noqa: ANN401
    """A whole number of at least so much, as an int."""
    try:
        count = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = least - 1
    if count < least:
        raise ShapeError(f"{name} must be a whole number, at least {least}; got {value!r}")
    return count


def number(name: str, value: Any) -> float:  # noqa: ANN401
    """A real number, as a float."""
    if isinstance(value, str | bytes | bool):
        raise TypeError(f"{name} must be a number; got {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number; got {value!r}") from None


def strategy(name: str, value: Any, *methods: str) -> None:  # noqa: ANN401
    """An instance that has these methods."""
    kind = value.__name__ if isinstance(value, type) else ""
    if kind or not all(callable(getattr(value, method, None)) for method in methods):
        wanted = f"pass {kind}(), an instance" if kind else f"it needs the methods {', '.join(methods)}"
        raise TypeError(f"{name} must be a strategy object; got {value!r}: {wanted}")


def elementwise(name: str, activation: Any, features: int) -> None:  # noqa: ANN401
    """None, or an unconditional transform of vectors of that width."""
    if activation is None:
        return
    if not isinstance(activation, Transform):
        raise TypeError(
            f"{name}(activation) must be a flowplug transform, such as SmoothLeakyReLU() or TanhLinear(), or None; got "
            f"{activation!r}: a bare function or module has no inverse and no log-det"
        )
    if activation.event_dim != 1:
        raise ShapeError(
            f"{name}(activation) acts on vectors of features, images included: it needs event_dim=1; got "
            f"event_dim={activation.event_dim} of {type(activation).__name__}"
        )
    if activation.event_shape not in (None, (None,), (features,)):
        raise ShapeError(f"{name}(activation) must take {features} features; got one of {activation.event_shape}")
    if activation.context_features:
        raise ContextError(
            f"{name}(activation) gets no context; got {type(activation).__name__} with context_features="
            f"{activation.context_features}: put it behind the transform, in a ComposedTransform"
        )


def own(activation: Transform | None) -> Transform | None:
    """A copy of an activation without parameters: its mode, its hooks and what it reports are of one transform."""
    if activation is None or next(activation.parameters(), None) is not None:
        return activation
    return copy.deepcopy(activation)


def started(name: str, init: Callable[[Tensor], object] | None, features: int) -> Tensor:
    """A square matrix in torch's default dtype, filled by ``init`` in at least single precision."""
    init = nn.init.orthogonal_ if init is None else init
    if not callable(init):
        raise TypeError(f"{name}(init) must be a function that fills a matrix in place, or None; got {init!r}")
    empty = torch.empty(features, features)
    matrix = at_least_single(empty)
    init(matrix)
    return matrix.to(empty.dtype)
