"""Where the random numbers of log-det estimates come from, and whether log-dets are computed at all."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Generator, Tensor

from flowplug._arguments import require_instance, require_ints

_seed: ContextVar[int | None] = ContextVar("flowplug_seed", default=None)
_skip: ContextVar[bool] = ContextVar("flowplug_no_logdet", default=False)


class Noise:
    """Where one estimate takes its random numbers from: torch's generators, or private ones that a seed repeats.

    Args:
        seed: An integer scalar tensor, read only by an estimator that asks for a generator; ``None``: torch's own.

    Example:
        >>> noise = Noise(torch.tensor(7))
        >>> noise.generator("cpu").initial_seed(), Noise().generator("cpu")
        (7, None)
    """

    def __init__(self, seed: Tensor | None = None) -> None:
        if seed is not None:
            require_instance("Noise", "seed", seed, Tensor, "torch.tensor(7)")
        self._seed = seed
        self._generators: dict[torch.device, Generator] = {}

    def generator(self, device: torch.device | str) -> Generator | None:
        """The generator of this estimate on the device, one stream for all its draws; ``None`` for torch's own."""
        if self._seed is None:
            return None
        device = torch.device(device)
        if device not in self._generators:
            self._generators[device] = Generator(device).manual_seed(int(self._seed))
        return self._generators[device]


@contextlib.contextmanager
def fixed_noise(seed: int) -> Iterator[None]:
    """Within this context stochastic log-dets repeat: the same inputs give the same estimate.

    Each transform mixes ``seed`` with one of its own, so estimates of different transforms stay independent.

    Args:
        seed: Any integer.

    Example:
        >>> transform = ResidualTransform(LipschitzMLP(2), logdet=PowerSeries())
        >>> x = torch.randn(5, 2)
        >>> with fixed_noise(0):
        ...     torch.equal(transform(x)[1], transform(x)[1])
        True
    """
    require_ints("fixed_noise", seed=seed)
    token = _seed.set(seed)
    try:
        yield
    finally:
        _seed.reset(token)


@contextlib.contextmanager
def no_logdet() -> Iterator[None]:
    """Within this context residual transforms skip the log-det and return zeros for it, which makes sampling cheaper.

    Example:
        >>> transform = ResidualTransform(LipschitzMLP(2))
        >>> with no_logdet():
        ...     x, zeros = transform.inverse(torch.randn(5, 2))
    """
    token = _skip.set(True)
    try:
        yield
    finally:
        _skip.reset(token)


def current_seed() -> int | None:
    """The seed of the innermost `fixed_noise`, or ``None``."""
    return _seed.get()


def logdet_skipped() -> bool:
    """Whether the caller is inside `no_logdet`."""
    return _skip.get()
