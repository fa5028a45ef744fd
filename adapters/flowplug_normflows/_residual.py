"""``normflows.flows.Residual`` by flowplug."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

import flowplug as fp
from flowplug_normflows._estimator import Estimator
from flowplug_normflows._networks import advising, branch_of, event_shape, initialize_
from flowplug_normflows._states import fit, translate
from flowplug_normflows._transform import NormflowsFlow


class Residual(NormflowsFlow):
    """``normflows.flows.Residual`` with certified invertibility, right gradients and context.

    With normflows' default arguments flowplug chooses the log-det (exact in low dimension); any other value is
    honoured, in train mode. ``logdet`` replaces those arguments: it names any strategy of flowplug. State dicts of
    ``normflows.flows.Residual`` load, alone and within a model.

    Args:
        net: A network of known Lipschitz bound below 1: `flowplug.LipschitzMLP`, `flowplug.LipschitzCNN`,
            ``normflows.nets.LipschitzMLP``, ``normflows.nets.LipschitzCNN`` (which finds its norms here, not on its
            first image), ... Or the width or shape of the events, for which a `flowplug.LipschitzMLP` is made.
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
        hidden_features: Widths of the hidden layers of the network that is made, as the next three; ``None`` stands for
            the default of `flowplug.LipschitzMLP`.
        bound: Upper bound on its Lipschitz constant, in (0, 1).
        norm: The norm the bound holds in.
        activation: Makes an activation module of known Lipschitz bound (a class such as `flowplug.Sine`).
        logdet: The log-det in train mode, `flowplug.ExactLogDet`, `flowplug.Krylov`, ...; ``None`` leaves it to the
            arguments of normflows.
        eval_logdet: The same in eval mode; ``None`` chooses.
        solver: Finds the inverse, `flowplug.Anderson` or `flowplug.FixedPoint`.

    Raises:
        TypeError: An option of the network is given beside a ``net`` that is built already, or ``logdet`` beside an
            argument of normflows.
        ValueError: ``n_dist`` is neither of the two.
        ContextError: ``net`` does not take a context of the width asked for.
        LipschitzError: The bound of ``net`` is unknown or not below 1.

    Example:
        >>> flow = Residual(fp.LipschitzMLP(2))
        >>> flow.inverse(torch.randn(5, 2))[0].shape
        torch.Size([5, 2])
        >>> flow = Residual(2, hidden_features=(64, 64), context_features=3, logdet=fp.Krylov())
        >>> flow.inverse(torch.randn(5, 2), torch.randn(5, 3))[1].shape
        torch.Size([5])
    """

    core: fp.ResidualTransform

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
        hidden_features: Sequence[int] | None = None,
        bound: float | None = None,
        norm: fp.OperatorNorm | fp.NetworkNorm | Sequence[fp.OperatorNorm] | None = None,
        activation: Callable[[], nn.Module] | None = None,
        logdet: fp.LogDet | None = None,
        eval_logdet: fp.LogDet | None = None,
        solver: fp.Solver = fp.Anderson(),  # noqa: B008 -- frozen
    ) -> None:
        estimator = Estimator(
            reduce_memory,
            geom_p,
            lamb,
            n_power_series,
            exact_trace,
            brute_force,
            n_samples,
            n_exact_terms,
            n_dist,
        )
        if logdet is not None and (changed := estimator.changed()):
            given = ", ".join(changed)
            raise TypeError(f"Residual got {given} beside logdet={logdet}, which replaces it: drop {given}, or logdet")
        options = {"hidden_features": hidden_features, "bound": bound, "norm": norm, "activation": activation}
        g = branch_of(net, context_features, {name: value for name, value in options.items() if value is not None})
        initialize_(g)
        shape = event_shape(g)
        logdet = estimator.logdet() if logdet is None else logdet
        with advising(g):
            core = fp.ResidualTransform(
                g,
                logdet=logdet,
                eval_logdet=eval_logdet,
                solver=solver,
                event_dim=None if shape is None else len(shape),
            )
        core.event_shape = core.event_shape if shape is None else shape
        super().__init__(core, reverse=reverse)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps latent to data; returns the log-det ``(B,)`` of that map."""
        with advising(self.core.g):
            return super().forward(z, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps data to latent; returns the log-det ``(B,)`` of that map."""
        with advising(self.core.g):
            return super().inverse(z, context)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:  # noqa: ANN401
        translate(state_dict, prefix, self.core.noise_seed)
        fit(self.core.g, state_dict, f"{prefix}core.g.")
        super()._load_from_state_dict(state_dict, prefix, *rest)
