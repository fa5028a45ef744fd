"""Dense transforms with the arguments of nflows' own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

import flowplug as fp
from flowplug_nflows._transform import NflowsTransform


class DenseTransform(NflowsTransform):
    """A fully connected layer ``W x + b`` with an invertible activation, trained by the relative gradient.

    With ``activation=None`` a learned mixing of features in place of a permutation or an LU layer.

    Args:
        features: Width of the events.
        activation: An element-wise transform such as `flowplug.SmoothLeakyReLU`; ``None`` for the bare map.
        bias: Whether there is a b.
        gradient: A `flowplug.DenseGradient`: `flowplug.Relative`, `flowplug.TransposedRelative`, `flowplug.Euclidean`.
        value: A `flowplug.DenseValue`: `flowplug.ExactValue`, `flowplug.Deferred`.
        init: Fills W in place: `flowplug.ScaledIdentity`, ...; ``None`` for `torch.nn.init.orthogonal_`.

    Example:
        >>> transform = DenseTransform(features=2, activation=None)
        >>> transform(torch.randn(5, 2))[0].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int,
        *,
        activation: fp.Transform | None = fp.SmoothLeakyReLU(0.3),  # noqa: B008 -- is copied
        bias: bool = True,
        gradient: fp.DenseGradient = fp.Relative(),  # noqa: B008 -- frozen
        value: fp.DenseValue = fp.ExactValue(),  # noqa: B008 -- frozen
        init: Callable[[Tensor], object] | None = None,
    ) -> None:
        super().__init__(
            fp.DenseTransform(features, activation=activation, bias=bias, gradient=gradient, value=value, init=init)
        )
