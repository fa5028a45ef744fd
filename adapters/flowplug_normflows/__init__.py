"""flowplug's transforms as flows of normflows.

`NormflowsFlow` wraps any flowplug transform; `Residual` takes the arguments of ``normflows.flows.Residual``, so that an
existing model changes one import. They mix with normflows' flows in `NormalizingFlow`, `ConditionalNormalizingFlow` and
`MultiscaleFlow`. normflows' own `LipschitzMLP` is accepted as network, with its bound computed from the weights in use.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import flowplug as fp

try:
    from normflows.flows import Flow
    from normflows.nets.lipschitz import InducedNormLinear, LipschitzMLP, Swish
except ImportError as error:
    raise ImportError("flowplug_normflows needs normflows: pip install 'flowplug[normflows]'") from error

__all__ = ["NormflowsFlow", "Residual"]


class NormflowsFlow(Flow):  # type: ignore[misc]
    """Any flowplug transform as a normflows flow.

    Args:
        core: The flowplug transform, data to latent. An unconditional one ignores any context.
        reverse: If true, as in normflows' ``Residual``, density evaluation (normflows' ``inverse``) is the cheap
            direction; if false, sampling (``forward``) is.

    Example:
        >>> NormflowsFlow(fp.ActNorm(2)).inverse(torch.randn(5, 2))[1].shape
        torch.Size([5])
    """

    def __init__(self, core: fp.Transform, *, reverse: bool = True) -> None:
        super().__init__()
        self.core, self.reverse = core, reverse

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps latent to data; returns the log-det ``(B,)`` of that map."""
        outputs: tuple[Tensor, Tensor] = self.core.inverse(z, context) if self.reverse else self.core(z, context)
        return outputs

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps data to latent; returns the log-det ``(B,)`` of that map."""
        outputs: tuple[Tensor, Tensor] = self.core(z, context) if self.reverse else self.core.inverse(z, context)
        return outputs


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
