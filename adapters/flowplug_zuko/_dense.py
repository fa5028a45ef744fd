"""Dense transforms with the arguments of zuko's own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from zuko.lazy import Flow

import flowplug as fp
from flowplug.hosts import require_ints
from flowplug_zuko._base import StandardNormal
from flowplug_zuko._transform import ZukoTransform


class DenseTransform(ZukoTransform):
    r"""Creates a lazy dense transformation :math:`y = \sigma(W x + b)`, trained by the relative gradient.

    With ``activation=None`` a learned mixing of features in place of a permutation, rotation or LU transformation.

    Args:
        features: Width of the events.
        activation: An element-wise transform such as `flowplug.SmoothLeakyReLU`; ``None`` for the bare map.
        bias: Whether there is a b.
        gradient: A `flowplug.DenseGradient`: `flowplug.Relative`, `flowplug.TransposedRelative`, `flowplug.Euclidean`.
        value: A `flowplug.DenseValue`: `flowplug.ExactValue`, `flowplug.Deferred`.
        init: Fills W in place: `flowplug.ScaledIdentity`, ...; ``None`` for `torch.nn.init.orthogonal_`.

    Example:
        >>> t = DenseTransform(3, activation=None)
        >>> t()(torch.randn(5, 3)).shape
        torch.Size([5, 3])
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


class DenseFlow(Flow):  # type: ignore[misc]
    """Creates a dense flow on a standard normal: the networks of Gresele et al. (2020), the last without activation.

    Args:
        features: Width of the events.
        transforms: Number of dense transforms.
        activation: As in `DenseTransform`, of all transforms but the last.
        value: As in `DenseTransform`.
        init: As in `DenseTransform`.

    Raises:
        ValueError: ``transforms`` is below 1.

    Example:
        >>> flow = DenseFlow(3, transforms=2)
        >>> flow().log_prob(torch.randn(5, 3)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        *,
        transforms: int = 3,
        activation: fp.Transform | None = fp.SmoothLeakyReLU(0.3),  # noqa: B008 -- is copied
        value: fp.DenseValue = fp.ExactValue(),  # noqa: B008 -- frozen
        init: Callable[[Tensor], object] | None = None,
    ) -> None:
        require_ints("DenseFlow", features=features, transforms=transforms)
        if transforms < 1:
            raise ValueError(f"DenseFlow(transforms=...) must be at least 1; got {transforms}")
        activations = [activation] * (transforms - 1) + [None]
        layers = [DenseTransform(features, activation=a, value=value, init=init) for a in activations]
        super().__init__(layers, StandardNormal(features))
