"""Dense transforms with the arguments of normflows' own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

import flowplug as fp
from flowplug_normflows._transform import NormflowsFlow


class Dense(NormflowsFlow):
    """A fully connected layer ``W x + b`` with an invertible activation, trained by the relative gradient.

    With ``activation=None`` a learned mixing of channels in place of ``Permute``, ``InvertibleAffine`` or
    ``LULinearPermute``.

    Args:
        num_channels: Width of the events.
        reverse: If true, density evaluation (normflows' ``inverse``) applies W, and sampling solves for it.
        activation: An element-wise transform such as `flowplug.SmoothLeakyReLU`; ``None`` for the bare map.
        bias: Whether there is a b.
        gradient: A `flowplug.DenseGradient`: `flowplug.Relative`, `flowplug.TransposedRelative`, `flowplug.Euclidean`.
        value: A `flowplug.DenseValue`: `flowplug.ExactValue`, `flowplug.Deferred`.
        init: Fills W in place: `flowplug.ScaledIdentity`, ...; ``None`` for `torch.nn.init.orthogonal_`.

    Example:
        >>> flow = Dense(2, activation=None)
        >>> flow.inverse(torch.randn(5, 2))[0].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        num_channels: int,
        *,
        reverse: bool = True,
        activation: fp.Transform | None = fp.SmoothLeakyReLU(0.3),  # noqa: B008 -- is copied
        bias: bool = True,
        gradient: fp.DenseGradient = fp.Relative(),  # noqa: B008 -- frozen
        value: fp.DenseValue = fp.ExactValue(),  # noqa: B008 -- frozen
        init: Callable[[Tensor], object] | None = None,
    ) -> None:
        core = fp.DenseTransform(
            num_channels, activation=activation, bias=bias, gradient=gradient, value=value, init=init
        )
        super().__init__(core, reverse=reverse)
