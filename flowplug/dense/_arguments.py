"""What constructors of dense transforms ask of their arguments."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowplug._errors import ContextError, ShapeError
from flowplug._precision import at_least_single
from flowplug._transform import Transform

GRADIENTS = "the gradient of a dense transform, such as Relative()"


def elementwise(name: str, activation: Any, features: int) -> None:  # noqa: ANN401
    """None, or an unconditional transform of vectors of that width."""
    if activation is None:
        return
    if not isinstance(activation, Transform):
        raise TypeError(
            f"{name}(activation=...) must be a flowplug transform, such as SmoothLeakyReLU() or TanhLinear(), or None; "
            f"got {activation!r}: a bare function or module has no inverse and no log-det"
        )
    if activation.event_dim != 1:
        raise ShapeError(
            f"{name}(activation=...) acts on vectors of features, images included: it needs event_dim=1; got "
            f"event_dim={activation.event_dim} of {type(activation).__name__}"
        )
    if activation.event_shape not in (None, (None,), (features,)):
        raise ShapeError(f"{name}(activation=...) must take {features} features; got one of {activation.event_shape}")
    if activation.context_features:
        raise ContextError(
            f"{name}(activation=...) gets no context; got {type(activation).__name__} with context_features="
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
        raise TypeError(f"{name}(init=...) must be a function that fills a matrix in place, or None; got {init!r}")
    empty = torch.empty(features, features)
    matrix = at_least_single(empty)
    init(matrix)
    return matrix.to(empty.dtype)
