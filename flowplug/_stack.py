"""The recommended residual flow, as one transform."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from flowplug._actnorm import ActNorm
from flowplug._arguments import require_ints
from flowplug._composition import ComposedTransform
from flowplug._residual import ResidualTransform
from flowplug._transform import Transform
from flowplug._whitening import Whitening
from flowplug.dense import DenseTransform, ScaledIdentity
from flowplug.lipschitz import LipschitzMLP, NetworkNorm, OperatorNorm, PathNorm, SineHuber
from flowplug.logdet import LogDet
from flowplug.solvers import Anderson, Solver


class ResidualStack(ComposedTransform):
    r"""Residual transforms with linear ones before each: :math:`f = a \circ r_n d_n w_n \circ \dots \circ r_1 d_1 w_1`.

    The w are `Whitening`, the d linear `DenseTransform` that start at the identity, the r `ResidualTransform` with a
    `LipschitzMLP` each, and a is an `ActNorm`. Scale and correlation are left to the linear parts, which start from the
    first rows in train mode, or by `start` from rows of your choice, and train by the relative gradient; the residual
    transforms learn the rest.

    Args:
        features: Width of the events.
        transforms: The number n of residual transforms, at least 1.
        hidden_features: Widths of the hidden layers of each.
        context_features: Width of the context, 0 for none.
        bound: Upper bound on the Lipschitz constant of each network, in (0, 1).
        norm: The norm the bound holds in, as in `LipschitzMLP`.
        activation: Makes one activation per hidden layer, as in `LipschitzMLP`.
        logdet: The log-det in train mode, as in `ResidualTransform`.
        eval_logdet: The same in eval mode.
        solver: Finds the inverse of each residual transform.

    Raises:
        ValueError: ``transforms`` is below 1.
        FlowplugError: As in `LipschitzMLP` and `ResidualTransform`.

    Example:
        >>> flow = ResidualStack(3, transforms=2, context_features=4)
        >>> y, ladj = flow(torch.randn(5, 3), torch.randn(5, 4))
        >>> y.shape, ladj.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        features: int,
        transforms: int = 3,
        hidden_features: Sequence[int] = (128,),
        *,
        context_features: int = 0,
        bound: float = 0.97,
        norm: OperatorNorm | NetworkNorm | Sequence[OperatorNorm] = PathNorm(),  # noqa: B008 -- frozen and stateless
        activation: Callable[[], nn.Module] = SineHuber,
        logdet: LogDet | None = None,
        eval_logdet: LogDet | None = None,
        solver: Solver = Anderson(),  # noqa: B008 -- frozen and stateless
    ) -> None:
        require_ints("ResidualStack", features=features, transforms=transforms)
        if transforms < 1:
            raise ValueError(f"ResidualStack(transforms=...) must be at least 1; got {transforms}")
        parts: list[Transform] = []
        for _ in range(transforms):
            g = LipschitzMLP(
                features,
                hidden_features,
                context_features=context_features,
                bound=bound,
                norm=norm,
                activation=activation,
            )
            parts += [
                Whitening(features),
                DenseTransform(features, activation=None, init=ScaledIdentity()),
                ResidualTransform(g, logdet=logdet, eval_logdet=eval_logdet, solver=solver),
            ]
        super().__init__(*parts, ActNorm(features))
