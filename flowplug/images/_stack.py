"""The recommended residual flow for images, as one transform."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from flowplug._actnorm import ActNorm
from flowplug._arguments import as_shape, given, require_ints, require_part, require_positive, require_sizes
from flowplug._composition import ComposedTransform
from flowplug._errors import ShapeError
from flowplug._residual import ResidualTransform
from flowplug.images._patches import PatchTransform
from flowplug.images._starts import ImageStart, PatchStart, PixelStart, patch_size
from flowplug.lipschitz import LipschitzMLP, NetworkNorm, OperatorNorm, PathNorm, SineHuber
from flowplug.logdet import LogDet
from flowplug.solvers import Anderson, Solver

WHOLE = 1024  # numbers of an image that are whitened together
PATCH = 64  # numbers of a patch that a residual transform maps


class ImageStack(ComposedTransform):
    r"""Residual transforms of patches amid a start from data: :math:`f = a \circ t \circ r_n \dots r_1 \circ s`.

    The start, s first and t last, leaves pixels of unit variance and little correlation, without training. Each r is a
    `PatchTransform` of a `ResidualTransform` whose `LipschitzMLP` sees a patch as a row of a table, told its place, and
    every second one tiles the image between the patches of the one before. All r start as identities; a is an `ActNorm`
    of channels. Start by `start` from as many dequantised images as there are, some tens of thousands, as s and t keep
    what their first batch told them.

    A patch of up to 128 numbers has an exact log-det in eval mode, and so have the images.

    Args:
        event_shape: Sizes ``(C, H, W)`` of the images.
        transforms: The number n of residual transforms, at least 1.
        hidden_features: Widths of the hidden layers of each.
        context_features: Width of a context, as a one-hot label, 0 for none.
        size: The side of the patches of the residual transforms; ``None``: the largest that divides the sides for at
            most 64 numbers, as 7 of (1, 28, 28) and 4 of (3, 32, 32).
        start: `PixelStart` or `PatchStart`. ``None``: the first for images of at most 1,024 numbers in [0, 1].
        bound: Upper bound on the Lipschitz constant of each network, in (0, 1).
        norm: The norm the bound holds in, as in `LipschitzMLP`.
        activation: Makes one activation per hidden layer, as in `LipschitzMLP`.
        logdet: The log-det in train mode, as in `ResidualTransform`.
        eval_logdet: The same in eval mode.
        solver: Finds the inverse of each residual transform.

    Raises:
        ValueError: ``transforms`` is below 1.
        ShapeError: ``event_shape`` is not ``(C, H, W)``, or ``size`` does not divide its sides.
        FlowplugError: As in `LipschitzMLP` and `ResidualTransform`.

    Example:
        >>> flow = ImageStack((1, 8, 8), transforms=2, hidden_features=(16,), context_features=10)
        >>> flow.start(torch.rand(300, 1, 8, 8), torch.zeros(300, 10))
        >>> y, ladj = flow(torch.rand(5, 1, 8, 8), torch.zeros(5, 10))
        >>> y.shape, ladj.shape
        (torch.Size([5, 1, 8, 8]), torch.Size([5]))
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        transforms: int = 4,
        hidden_features: Sequence[int] = (256,),
        *,
        context_features: int = 0,
        size: int | None = None,
        start: ImageStart | None = None,
        bound: float = 0.97,
        norm: OperatorNorm | NetworkNorm | Sequence[OperatorNorm] = PathNorm(),  # noqa: B008 -- frozen and stateless
        activation: Callable[[], nn.Module] = SineHuber,
        logdet: LogDet | None = None,
        eval_logdet: LogDet | None = None,
        solver: Solver = Anderson(),  # noqa: B008 -- frozen and stateless
    ) -> None:
        shape = image_shape("ImageStack", event_shape)
        require_ints("ImageStack", transforms=transforms, context_features=context_features, **given(size=size))
        if transforms < 1:
            raise ValueError(f"ImageStack(transforms=...) must be at least 1; got {transforms}")
        if context_features < 0:
            raise ShapeError(f"ImageStack(context_features=...) must not be negative; got {context_features}")
        if size is not None:
            require_positive("ImageStack", size=size)
        if start is None:
            start = PixelStart() if math.prod(shape) <= WHOLE else PatchStart()
        for part in ("before", "behind"):
            require_part("ImageStack", "start", start, part, "a start, such as PixelStart(), or None")
        if size is None:
            size = patch_size(shape, max(1, math.isqrt(PATCH // shape[0])))
        places = sum(side // size for side in shape[1:])
        parts = start.before(shape)
        for number in range(transforms):
            g = LipschitzMLP(
                shape[0] * size**2,
                hidden_features,
                context_features=places + context_features,
                bound=bound,
                norm=norm,
                activation=activation,
                zero_last=True,
            )
            residual = ResidualTransform(g, logdet=logdet, eval_logdet=eval_logdet, solver=solver)
            parts.append(PatchTransform(residual, shape, size, shift=size // 2 * (number % 2)))
        super().__init__(*parts, *start.behind(shape), ActNorm(shape[0], event_dim=3))


def image_shape(owner: str, event_shape: Sequence[int]) -> tuple[int, ...]:
    """The sizes ``(C, H, W)``.

    Raises:
        ShapeError: These are others.
    """
    require_sizes(owner, event_shape=event_shape)
    require_positive(owner, event_shape=event_shape)
    shape = as_shape(event_shape)
    if len(shape) != 3:
        raise ShapeError(f"{owner}(event_shape=...) must be the sizes (C, H, W) of images; got {shape}")
    return shape
