"""Any flowplug transform as a lazy transform of zuko."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from zuko.lazy import LazyTransform

import flowplug as fp
from flowplug.hosts import draws_noise, given, require_instance, require_ints


class BoundTransform(Transform):
    """A flowplug transform with its context, as a transform of torch and zuko.

    In train mode the noise of stochastic log-dets is drawn once, here: one object is one realisation, so ``log_prob``
    repeats and agrees with ``rsample_and_log_prob``; inside `flowplug.fixed_noise` that is the noise.

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
        require_instance("BoundTransform", "core", core, fp.Transform, "flowplug.ActNorm(2)")
        if context is not None:
            require_instance("BoundTransform", "context", context, Tensor, "torch.zeros(5, 3)")
        require_ints("BoundTransform", **given(seed=seed))
        self.core, self.context = core, context
        self.domain = constraints.independent(constraints.real, core.event_dim)  # type: ignore[no-untyped-call]
        self.codomain = constraints.independent(constraints.real, core.latent_dim)  # type: ignore[no-untyped-call]
        self.seed = int(torch.randint(2**31, (), device="cpu")) if seed is None and draws_noise(core) else seed

    def with_cache(self, cache_size: int = 1) -> BoundTransform:
        """The same transform, with or without torch's cache of one pair."""
        if cache_size == self._cache_size:
            return self
        return BoundTransform(self.core, self.context, seed=self.seed, cache_size=cache_size)

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """The shape of the output for that of an input, batch included."""
        split = len(shape) - self.core.event_dim
        return torch.Size([*shape[:split], *self.core.forward_shape(shape[split:])])  # type: ignore[list-item]

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """The shape of the input for that of an output, batch included."""
        split = len(shape) - self.core.latent_dim
        return torch.Size([*shape[:split], *self.core.inverse_shape(shape[split:])])  # type: ignore[list-item]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The transformed value and its log-det, in one pass."""
        with nullcontext() if self.seed is None else fp.fixed_noise(self.seed):
            outputs: tuple[Tensor, Tensor] = self.core(x, self.context)
        return outputs

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The log-det at ``x``, outside autocast, as it is the one of the inverse."""
        del y
        like = next(self.core.parameters(), x)
        with torch.autocast(x.device.type, enabled=False):
            return self.call_and_ladj(x.to(like.dtype))[1]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.core})"

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
        require_instance(type(self).__name__, "core", core, fp.Transform, "flowplug.ActNorm(2)")
        self.core = core

    def forward(self, c: Tensor | None = None) -> BoundTransform:
        """The transform for the context ``c: (*batch, context)``."""
        return BoundTransform(self.core, c)
