"""Residual transforms with the arguments of nflows' own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn

import flowplug as fp
from flowplug.hosts import require_ints
from flowplug_nflows._host import CompositeTransform, Flow, StandardNormal
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
        norm: The norm the bound holds in, as in `flowplug.LipschitzMLP`.
        logdet: The log-det in train mode, `flowplug.ExactLogDet`, `flowplug.Krylov`, ...; ``None`` chooses.
        eval_logdet: The same in eval mode.
        solver: Finds the inverse, `flowplug.Anderson` or `flowplug.FixedPoint`.

    Raises:
        ValueError: ``num_blocks`` is negative.
        FlowplugError: As in `flowplug.LipschitzMLP` and `flowplug.ResidualTransform`.

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
        norm: fp.OperatorNorm | fp.NetworkNorm | Sequence[fp.OperatorNorm] = fp.PathNorm(),  # noqa: B008 -- frozen
        logdet: fp.LogDet | None = None,
        eval_logdet: fp.LogDet | None = None,
        solver: fp.Solver = fp.Anderson(),  # noqa: B008 -- frozen
    ) -> None:
        require_ints("ResidualTransform", hidden_features=hidden_features, num_blocks=num_blocks)
        if num_blocks < 0:
            raise ValueError(f"ResidualTransform(num_blocks=...) must not be negative; got {num_blocks}")
        g = fp.LipschitzMLP(
            features,
            (hidden_features,) * num_blocks,
            context_features=0 if context_features is None else context_features,
            bound=bound,
            norm=norm,
            activation=activation,
        )
        super().__init__(fp.ResidualTransform(g, logdet=logdet, eval_logdet=eval_logdet, solver=solver))


class ResidualFlow(Flow):  # type: ignore[misc]
    """A `flowplug.ResidualStack` on a standard normal, in the manner of nflows' ready-made flows.

    ``sample`` computes no log-dets; in a flow of your own, nflows has them computed and throws them away: sample inside
    `flowplug.no_logdet`.

    Args:
        features: Width of the events.
        hidden_features: Width of the hidden layers.
        num_layers: Number of residual transforms, at least 1. Before each stand a `flowplug.Whitening` and a linear
            `flowplug.DenseTransform` that starts at the identity, after the last a `flowplug.ActNorm`.
        num_blocks_per_layer: Number of hidden layers of each.
        context_features: Width of the context, or ``None``.
        activation: As in `ResidualTransform`.
        bound: As in `ResidualTransform`.
        norm: As in `ResidualTransform`.
        logdet: As in `ResidualTransform`.
        eval_logdet: As in `ResidualTransform`.
        solver: As in `ResidualTransform`.

    Raises:
        ValueError: ``num_layers`` is below 1, or ``num_blocks_per_layer`` negative.
        FlowplugError: As in `ResidualTransform`.

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
        *,
        activation: Callable[[], nn.Module] = fp.SineHuber,
        bound: float = 0.97,
        norm: fp.OperatorNorm | fp.NetworkNorm | Sequence[fp.OperatorNorm] = fp.PathNorm(),  # noqa: B008 -- frozen
        logdet: fp.LogDet | None = None,
        eval_logdet: fp.LogDet | None = None,
        solver: fp.Solver = fp.Anderson(),  # noqa: B008 -- frozen
    ) -> None:
        sizes = {"hidden_features": hidden_features, "num_blocks_per_layer": num_blocks_per_layer}
        require_ints("ResidualFlow", features=features, num_layers=num_layers, **sizes)
        if num_blocks_per_layer < 0:
            raise ValueError(f"ResidualFlow(num_blocks_per_layer=...) must not be negative; got {num_blocks_per_layer}")
        stack = fp.ResidualStack(
            features,
            num_layers,
            (hidden_features,) * num_blocks_per_layer,
            context_features=0 if context_features is None else context_features,
            bound=bound,
            norm=norm,
            activation=activation,
            logdet=logdet,
            eval_logdet=eval_logdet,
            solver=solver,
        )
        layers = [NflowsTransform(cast(fp.Transform, part)) for part in stack.transforms]
        super().__init__(CompositeTransform(layers), StandardNormal([features]))

    def _sample(self, num_samples: int, context: Tensor | None) -> Tensor:
        with fp.no_logdet():  # which nflows throws away
            samples: Tensor = super()._sample(num_samples, context)
        return samples
