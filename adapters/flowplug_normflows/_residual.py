"""``normflows.flows.Residual`` by flowplug, and the bounds of normflows' own networks."""

from collections.abc import Sequence

import torch
from normflows.nets.lipschitz import InducedNormLinear, LipschitzMLP, Swish
from torch import nn

import flowplug as fp
from flowplug_normflows._transform import NormflowsFlow


class Residual(NormflowsFlow):
    """``normflows.flows.Residual`` with certified invertibility, right gradients and context.

    With the default arguments flowplug chooses the log-det (exact in low dimension); any other value is honoured.

    Args:
        net: A network of known Lipschitz bound below 1: `flowplug.LipschitzMLP`, ``normflows.nets.LipschitzMLP``, ...
            Or the width or shape of the events, for which a `flowplug.LipschitzMLP` is made.
        reverse: If true, density evaluation is the cheap direction.
        reduce_memory: If true, the Neumann gradient, else the differentiated series.
        geom_p: Parameter of the geometric distribution of the number of terms.
        lamb: Parameter of the Poisson distribution of the number of terms.
        n_power_series: Fixed number of terms (biased), in place of a random one.
        exact_trace: If true, no trace is estimated: the log-det is exact.
        brute_force: If true, the log-det is exact, in any dimension.
        n_samples: Number of probes.
        n_exact_terms: Number of terms always included.
        n_dist: ``"geometric"`` or ``"poisson"``.
        context_features: Width of the context; a network passed as ``net`` must have been built with the same.

    Raises:
        ValueError: ``n_dist`` is neither of the two.
        ContextError: ``net`` does not take a context of the width asked for.
        LipschitzError: The bound of ``net`` is unknown or not below 1.

    Example:
        >>> flow = Residual(fp.LipschitzMLP(2))
        >>> flow.inverse(torch.randn(5, 2))[0].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        net: nn.Module | int | Sequence[int],
        reverse: bool = True,  # noqa: FBT001, FBT002 -- normflows' signature
        reduce_memory: bool = True,  # noqa: FBT001, FBT002
        geom_p: float = 0.5,
        lamb: float = 2.0,
        n_power_series: int | None = None,
        exact_trace: bool = False,  # noqa: FBT001, FBT002
        brute_force: bool = False,  # noqa: FBT001, FBT002
        n_samples: int = 1,
        n_exact_terms: int = 2,
        n_dist: str = "geometric",
        *,
        context_features: int = 0,
    ) -> None:
        if not isinstance(net, nn.Module):
            net = fp.LipschitzMLP(net, context_features=context_features)
        elif context_features not in (0, getattr(net, "context_features", 0)):
            raise fp.ContextError(
                f"context_features={context_features}, but net takes a context of width "
                f"{getattr(net, 'context_features', 0)}: build it with context_features={context_features}"
            )
        # normflows' geometric number of terms starts at 1, flowplug's at 0.
        roulettes = {
            "geometric": fp.Roulette(fp.Geometric(geom_p), exact=n_exact_terms + 1),
            "poisson": fp.Roulette(fp.Poisson(lamb), exact=n_exact_terms),
        }
        if n_dist not in roulettes:
            raise ValueError(f"n_dist must be one of {sorted(roulettes)}; got {n_dist!r}")
        asked = (reduce_memory, geom_p, lamb, n_power_series, n_samples, n_exact_terms, n_dist)
        logdet: fp.LogDet | None = None
        if exact_trace or brute_force:
            logdet = fp.ExactLogDet()
        elif asked != (True, 0.5, 2.0, None, 1, 2, "geometric"):
            logdet = fp.PowerSeries(
                terms=roulettes[n_dist] if n_power_series is None else fp.Truncated(n_power_series),
                probes=fp.Rademacher(samples=n_samples),
                gradient=fp.Neumann() if reduce_memory else fp.Autograd(),
            )
        super().__init__(fp.ResidualTransform(net, logdet=logdet), reverse=reverse)


@fp.lipschitz_bound.register
def _(module: InducedNormLinear) -> fp.LipschitzBound:
    # normflows estimates the norm from below; the certificate is the norm of the weight it then uses.
    if module.domain != 2 or module.codomain != 2:
        raise fp.LipschitzError("only InducedNormLinear(domain=2, codomain=2) has a known bound")
    return fp.LipschitzBound(torch.linalg.matrix_norm(module.compute_weight(update=False), 2), 2.0)


@fp.lipschitz_bound.register
def _(module: Swish) -> fp.LipschitzBound:
    return fp.LipschitzBound(1.0)


@fp.lipschitz_bound.register
def _(module: LipschitzMLP) -> fp.LipschitzBound:
    return fp.lipschitz_bound(module.net)
