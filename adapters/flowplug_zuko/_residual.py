"""Residual transforms with the arguments of zuko's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import nn
from zuko.lazy import Flow

import flowplug as fp
from flowplug.hosts import given, require_bools, require_ints
from flowplug_zuko._base import StandardNormal
from flowplug_zuko._transform import ZukoTransform

_EXACT: dict[bool, fp.LogDet] = {True: fp.ExactLogDet(), False: fp.Krylov()}


def _logdet(*, exact: bool | None, logdet: fp.LogDet | None) -> fp.LogDet | None:
    require_bools("ResidualTransform", **given(exact=exact))
    if exact is None:
        return logdet
    if logdet is not None:
        raise TypeError(f"exact={exact} is short for logdet={_EXACT[exact]}: drop exact, as logdet={logdet} is given")
    return _EXACT[exact]


class ResidualTransform(ZukoTransform):
    r"""Creates a lazy residual transformation :math:`y = x + g(x, c)` with a `flowplug.LipschitzMLP` as g.

    Args:
        features: Width of the events, or their shape, e.g. ``(C, H, W)``.
        context: Width of the context.
        hidden_features: Widths of the hidden layers.
        exact: Short for ``logdet``: ``True`` for `flowplug.ExactLogDet`, ``False`` for `flowplug.Krylov`.
        activation: Makes an activation module of known Lipschitz bound (a class such as `flowplug.Sine`).
        bound: Upper bound on the Lipschitz constant of g, in (0, 1).
        norm: The norm the bound holds in, as in `flowplug.LipschitzMLP`.
        logdet: The log-det in train mode, `flowplug.ExactLogDet`, `flowplug.Krylov`, ...; ``None`` chooses.
        eval_logdet: The same in eval mode.
        solver: Finds the inverse, `flowplug.Anderson` or `flowplug.FixedPoint`.

    Raises:
        TypeError: Both ``exact`` and ``logdet`` are given.
        FlowplugError: As in `flowplug.LipschitzMLP` and `flowplug.ResidualTransform`.

    Example:
        >>> t = ResidualTransform(3, context=4)
        >>> t(torch.randn(4))(torch.randn(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: int = 0,
        hidden_features: Sequence[int] = (128,),
        *,
        exact: bool | None = None,
        activation: Callable[[], nn.Module] = fp.SineHuber,
        bound: float = 0.97,
        norm: fp.OperatorNorm | fp.NetworkNorm | Sequence[fp.OperatorNorm] = fp.PathNorm(),  # noqa: B008 -- frozen
        logdet: fp.LogDet | None = None,
        eval_logdet: fp.LogDet | None = None,
        solver: fp.Solver = fp.Anderson(),  # noqa: B008 -- frozen
    ) -> None:
        require_ints("ResidualTransform", context=context)
        logdet = _logdet(exact=exact, logdet=logdet)
        g = fp.LipschitzMLP(
            features, hidden_features, context_features=context, bound=bound, norm=norm, activation=activation
        )
        super().__init__(fp.ResidualTransform(g, logdet=logdet, eval_logdet=eval_logdet, solver=solver))


class ResidualFlow(Flow):  # type: ignore[misc]
    """Creates a `flowplug.ResidualStack` on a standard normal, in the manner of zuko's ready-made flows.

    Args:
        features: Width of the events.
        context: Width of the context.
        transforms: Number of residual transforms, at least 1. Before each stand a `flowplug.Whitening` and a linear
            `flowplug.DenseTransform` that starts at the identity, after the last a `flowplug.ActNorm`.
        hidden_features: Widths of the hidden layers of each.
        exact: As in `ResidualTransform`.
        activation: As in `ResidualTransform`.
        bound: As in `ResidualTransform`.
        norm: As in `ResidualTransform`.
        logdet: As in `ResidualTransform`.
        eval_logdet: As in `ResidualTransform`.
        solver: As in `ResidualTransform`.

    Raises:
        TypeError: Both ``exact`` and ``logdet`` are given.
        ValueError: ``transforms`` is below 1.
        FlowplugError: As in `ResidualTransform`.

    Example:
        >>> flow = ResidualFlow(3, context=4, transforms=2)
        >>> flow(torch.randn(4)).log_prob(torch.randn(5, 3)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 3,
        *,
        hidden_features: Sequence[int] = (128,),
        exact: bool | None = None,
        activation: Callable[[], nn.Module] = fp.SineHuber,
        bound: float = 0.97,
        norm: fp.OperatorNorm | fp.NetworkNorm | Sequence[fp.OperatorNorm] = fp.PathNorm(),  # noqa: B008 -- frozen
        logdet: fp.LogDet | None = None,
        eval_logdet: fp.LogDet | None = None,
        solver: fp.Solver = fp.Anderson(),  # noqa: B008 -- frozen
    ) -> None:
        require_ints("ResidualFlow", features=features, context=context, transforms=transforms)
        stack = fp.ResidualStack(
            features,
            transforms,
            hidden_features,
            context_features=context,
            bound=bound,
            norm=norm,
            activation=activation,
            logdet=_logdet(exact=exact, logdet=logdet),
            eval_logdet=eval_logdet,
            solver=solver,
        )
        super().__init__(
            [ZukoTransform(cast(fp.Transform, part)) for part in stack.transforms], StandardNormal(features)
        )
