"""flowplug's transforms as lazy transforms of zuko.

`ZukoTransform` wraps any flowplug transform; the classes named after zuko's own build one from the arguments a zuko
user expects. They mix with zuko's transforms in `Flow`, and invert by ``.inv`` like these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

import flowplug as fp

try:
    from zuko.distributions import DiagNormal
    from zuko.lazy import Flow, LazyTransform, UnconditionalDistribution
except ImportError as error:
    raise ImportError("flowplug_zuko needs zuko: pip install 'flowplug[zuko]'") from error

__all__ = ["BoundTransform", "ResidualFlow", "ResidualTransform", "ZukoTransform"]


class BoundTransform(Transform):
    """A flowplug transform with its context, as a transform of torch and zuko.

    In train mode the noise of stochastic log-dets is drawn once, here: one object is one realisation, so ``log_prob``
    repeats and agrees with ``rsample_and_log_prob``.

    Args:
        core: The flowplug transform.
        context: Shape ``(*batch, context_features)``, or ``None``.
        seed: Seeds the noise; ``None`` draws a seed from torch's generator in train mode.
        cache_size: 0 or 1, as in torch.
    """

    bijective = True

    def __init__(
        self, core: fp.Transform, context: Tensor | None = None, *, seed: int | None = None, cache_size: int = 0
    ) -> None:
        super().__init__(cache_size=cache_size)
        self.core, self.context = core, context
        self.domain = self.codomain = constraints.independent(constraints.real, core.event_dim)  # type: ignore[no-untyped-call]
        self.seed = int(torch.randint(2**31, (), device="cpu")) if seed is None and core.training else seed

    def with_cache(self, cache_size: int = 1) -> BoundTransform:
        """The same transform, with or without torch's cache of one pair."""
        if cache_size == self._cache_size:
            return self
        return BoundTransform(self.core, self.context, seed=self.seed, cache_size=cache_size)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The transformed value and its log-det, in one pass."""
        with nullcontext() if self.seed is None else fp.fixed_noise(self.seed):
            outputs: tuple[Tensor, Tensor] = self.core(x, self.context)
        return outputs

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The log-det at ``x``."""
        del y
        return self.call_and_ladj(x)[1]

    def _call(self, x: Tensor) -> Tensor:
        with fp.no_logdet():
            return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        with fp.no_logdet():
            return self.core.inverse(y, self.context)[0]


class ZukoTransform(LazyTransform):  # type: ignore[misc]
    """Any flowplug transform as a lazy transform of zuko.

    Args:
        core: The flowplug transform. An unconditional one ignores any context.

    Example:
        >>> ZukoTransform(fp.ActNorm(2))().call_and_ladj(torch.randn(5, 2))[1].shape
        torch.Size([5])
    """

    def __init__(self, core: fp.Transform) -> None:
        super().__init__()
        self.core = core

    def forward(self, c: Tensor | None = None) -> BoundTransform:
        """The transform for the context ``c: (*batch, context)``."""
        return BoundTransform(self.core, c)


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
        activation: Callable[[], nn.Module] = fp.Sine,
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
        transforms: Number of residual transforms; an `flowplug.ActNorm` stands before each and after the last.
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
            layers.append(ZukoTransform(fp.ActNorm(features)))
            layers.append(ResidualTransform(features, context, hidden_features, exact=exact))
        layers.append(ZukoTransform(fp.ActNorm(features)))
        base = UnconditionalDistribution(DiagNormal, torch.zeros(features), torch.ones(features), buffer=True)
        super().__init__(layers, base)
