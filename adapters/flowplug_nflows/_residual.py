"""Residual transforms with the arguments of nflows' own."""

from collections.abc import Callable, Sequence

from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow
from nflows.transforms.base import CompositeTransform, Transform
from torch import nn

import flowplug as fp
from flowplug_nflows._transform import NflowsTransform


class ResidualTransform(NflowsTransform):
    """A residual flow ``y = x + g(x, context)`` with a `flowplug.LipschitzMLP` as g.

    Args:
        features: Width of the events, or their shape, e.g. ``(C, H, W)``.
        hidden_features: Width of the hidden layers.
        context_features: Width of the context, or ``None``.
        num_blocks: Number of hidden layers.
        activation: Makes an activation module of known Lipschitz bound (a class such as `flowplug.Sine`).
        bound: Upper bound on the Lipschitz constant of g, in (0, 1).
        logdet: The log-det in train mode, `flowplug.ExactLogDet`, `flowplug.Krylov`, ...; ``None`` chooses.
        eval_logdet: The same in eval mode.

    Example:
        >>> transform = ResidualTransform(features=2, hidden_features=64)
        >>> transform(torch.randn(5, 2))[0].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        hidden_features: int,
        context_features: int | None = None,
        num_blocks: int = 1,
        activation: Callable[[], nn.Module] = fp.SineHuber,
        *,
        bound: float = 0.97,
        logdet: fp.LogDet | None = None,
        eval_logdet: fp.LogDet | None = None,
    ) -> None:
        hidden = (hidden_features,) * num_blocks
        width = context_features or 0
        g = fp.LipschitzMLP(features, hidden, context_features=width, bound=bound, activation=activation)
        super().__init__(fp.ResidualTransform(g, logdet=logdet, eval_logdet=eval_logdet))


class ResidualFlow(Flow):  # type: ignore[misc]
    """A residual flow on a standard normal, in the manner of nflows' ready-made flows.

    Args:
        features: Width of the events.
        hidden_features: Width of the hidden layers.
        num_layers: Number of residual transforms. Before each stand a `flowplug.Whitening` and a linear
            `flowplug.DenseTransform` that starts at the identity, after the last a `flowplug.ActNorm`.
        num_blocks_per_layer: Number of hidden layers of each.
        context_features: Width of the context, or ``None``.

    Example:
        >>> flow = ResidualFlow(features=2, hidden_features=32, num_layers=4, num_blocks_per_layer=2)
        >>> flow.log_prob(torch.randn(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        num_layers: int,
        num_blocks_per_layer: int,
        context_features: int | None = None,
    ) -> None:
        layers: list[Transform] = []
        for _ in range(num_layers):
            layers.append(NflowsTransform(fp.Whitening(features)))
            dense = fp.DenseTransform(features, activation=None, init=fp.ScaledIdentity())
            layers.append(NflowsTransform(dense))
            layers.append(ResidualTransform(features, hidden_features, context_features, num_blocks_per_layer))
        layers.append(NflowsTransform(fp.ActNorm(features)))
        super().__init__(CompositeTransform(layers), StandardNormal([features]))
