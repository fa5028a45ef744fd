"""Residual transforms with the arguments of zuko's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from zuko.distributions import DiagNormal
from zuko.lazy import Flow, LazyTransform, UnconditionalDistribution

import flowplug as fp
from flowplug_zuko._transform import ZukoTransform


class ResidualTransform(ZukoTransform):
    r"""Creates a lazy residual transformation :math:`y = x + g(x, c)` with a `flowplug.LipschitzMLP` as g.

    Args:
        features: Width of the events, or their shape, e.g. ``(C, H, W)``.
        context: Width of the context.
        hidden_features: Widths of the hidden layers.
        exact: Whether the log-det is exact or estimated without bias in train mode; ``None``: by dimension.
        activation: Makes an activation module of known Lipschitz bound (a class such as `flowplug.Sine`).
        bound: Upper bound on the Lipschitz constant of g, in (0, 1).

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
    ) -> None:
        g = fp.LipschitzMLP(features, hidden_features, context_features=context, activation=activation, bound=bound)
        logdet = None if exact is None else fp.ExactLogDet() if exact else fp.Krylov()
        super().__init__(fp.ResidualTransform(g, logdet=logdet))


class ResidualFlow(Flow):  # type: ignore[misc]
    """Creates a residual flow on a standard normal, in the manner of zuko's ready-made flows.

    Args:
        features: Width of the events.
        context: Width of the context.
        transforms: Number of residual transforms. Before each stand a `flowplug.Whitening` and a linear
            `flowplug.DenseTransform` that starts at the identity, after the last a `flowplug.ActNorm`.
        hidden_features: Widths of the hidden layers of each.
        exact: As in `ResidualTransform`.

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
    ) -> None:
        layers: list[LazyTransform] = []
        for _ in range(transforms):
            layers.append(ZukoTransform(fp.Whitening(features)))
            dense = fp.DenseTransform(features, activation=None, init=fp.ScaledIdentity())
            layers.append(ZukoTransform(dense))
            layers.append(ResidualTransform(features, context, hidden_features, exact=exact))
        layers.append(ZukoTransform(fp.ActNorm(features)))
        base = UnconditionalDistribution(DiagNormal, torch.zeros(features), torch.ones(features), buffer=True)
        super().__init__(layers, base)
