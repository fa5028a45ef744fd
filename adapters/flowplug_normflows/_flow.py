"""A ready-made flow of normflows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from normflows import ConditionalNormalizingFlow, NormalizingFlow
from normflows.distributions import DiagGaussian
from torch import nn

import flowplug as fp
from flowplug.hosts import require_ints, require_part
from flowplug_normflows._transform import NormflowsFlow


def ResidualFlow(
    features: int,
    num_layers: int = 3,
    hidden_features: Sequence[int] = (128,),
    *,
    context_features: int = 0,
    q0: nn.Module | None = None,
    p: nn.Module | None = None,
    bound: float = 0.97,
    norm: fp.OperatorNorm | fp.NetworkNorm | Sequence[fp.OperatorNorm] = fp.PathNorm(),  # noqa: B008 -- frozen
    activation: Callable[[], nn.Module] = fp.SineHuber,
    logdet: fp.LogDet | None = None,
    eval_logdet: fp.LogDet | None = None,
    solver: fp.Solver = fp.Anderson(),  # noqa: B008 -- frozen
) -> NormalizingFlow:
    """A `flowplug.ResidualStack` as a ``NormalizingFlow``, or with a context as a ``ConditionalNormalizingFlow``.

    These are normflows' own classes, whose methods differ in the context they take and pass to ``q0`` and ``p``.

    Args:
        features: Width of the events.
        num_layers: Number of residual transforms, at least 1. From data to latent there stand a `flowplug.Whitening`
            and a linear `flowplug.DenseTransform` that starts at the identity before each, and a `flowplug.ActNorm`
            after the last.
        hidden_features: Widths of the hidden layers of each.
        context_features: Width of the context, 0 for none.
        q0: The base distribution; ``None`` for a standard normal, ``DiagGaussian(features, trainable=False)``.
        p: The target, for ``reverse_kld``.
        bound: Upper bound on the Lipschitz constant of each network, in (0, 1).
        norm: The norm the bound holds in, as in `flowplug.LipschitzMLP`.
        activation: Makes an activation module of known Lipschitz bound (a class such as `flowplug.Sine`).
        logdet: The log-det in train mode, `flowplug.ExactLogDet`, `flowplug.Krylov`, ...; ``None`` chooses.
        eval_logdet: The same in eval mode.
        solver: Finds the inverse, `flowplug.Anderson` or `flowplug.FixedPoint`.

    Returns:
        The flow, whose ``flows`` are a `NormflowsFlow` for each transform, latent to data.

    Raises:
        ValueError: ``num_layers`` is below 1.
        FlowplugError: As in `flowplug.LipschitzMLP` and `flowplug.ResidualTransform`.

    Example:
        >>> flow = ResidualFlow(2, num_layers=2)
        >>> flow.forward_kld(torch.randn(5, 2)).shape
        torch.Size([])
        >>> flow = ResidualFlow(2, num_layers=2, context_features=3)
        >>> flow.log_prob(torch.randn(5, 2), context=torch.randn(5, 3)).shape
        torch.Size([5])
    """
    require_ints("ResidualFlow", features=features, num_layers=num_layers, context_features=context_features)
    for role, part in {"q0": q0, "p": p}.items():
        if part is not None:
            require_part("ResidualFlow", role, part, "log_prob", "a distribution of normflows, or None")
    stack = fp.ResidualStack(
        features,
        num_layers,
        hidden_features,
        context_features=context_features,
        bound=bound,
        norm=norm,
        activation=activation,
        logdet=logdet,
        eval_logdet=eval_logdet,
        solver=solver,
    )
    flows = [NormflowsFlow(cast(fp.Transform, part)) for part in reversed(stack.transforms)]
    base = DiagGaussian(features, trainable=False) if q0 is None else q0
    host = ConditionalNormalizingFlow if context_features else NormalizingFlow
    return host(base, flows, p)
