"""Where the random numbers of log-det estimates come from, and whether log-dets are computed at all."""

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final, NamedTuple

import torch
from torch import Generator, Tensor

from flowplug._arguments import require_instance, require_ints


class Conditions(NamedTuple):
    """Under which conditions a pass is made.

    Attributes:
        seed: That of the innermost `fixed_noise`, or ``None``.
        skip: Whether the caller is inside `no_logdet`.
    """

    seed: int | None = None
    skip: bool = False


class _OfThread(threading.local):
    """Those of this thread, for the compiler, which follows no context variables."""

    def __init__(self) -> None:
        self.seed: int | None = None
        self.skip = False


_current: ContextVar[Conditions] = ContextVar("flowplug_conditions", default=Conditions())  # noqa: B039 -- immutable
_of_thread: Final = _OfThread()
# The compiler of torch 2.4 takes what such an object holds for something else, and says nothing.
_FOLLOWED: Final = torch.__version__ >= "2.8"


class Noise:
    """Where one estimate takes its random numbers from: torch's generators, or private ones that a seed repeats.

    Args:
        seed: An integer scalar tensor, read only by an estimator that asks for a generator; ``None``: torch's own.
        mix: What the seed is mixed with: an integer, or one with a tuple of others.
        by_content: Whether a row's numbers are to follow from what it holds, or from its place in the batch.
        number: That of the transform that asks, as ``flowplug._operators`` has it, for compiled graphs.

    Example:
        >>> noise = Noise(torch.tensor(7))
        >>> noise.generator("cpu").initial_seed(), Noise().generator("cpu")
        (7, None)
    """

    def __init__(
        self,
        seed: Tensor | None = None,
        *,
        mix: int | tuple[int, tuple[int, ...]] = 0,
        by_content: bool = False,
        number: int | None = None,
    ) -> None:
        if seed is not None:
            require_instance("Noise", "seed", seed, Tensor, "torch.tensor(7)")
        self.seed, self.mix, self.by_content, self.number = seed, mix, by_content, number
        self._generators: dict[torch.device, Generator] = {}

    def generator(self, device: torch.device | str) -> Generator | None:
        """The generator of this estimate on the device, one stream for all its draws; ``None`` for torch's own."""
        if self.seed is None:
            return None
        device = torch.device(device)
        if device not in self._generators:
            # Generators take seeds of 63 bits.
            self._generators[device] = Generator(device).manual_seed((int(self.seed) ^ hash(self.mix)) % 2**63)
        return self._generators[device]


@contextlib.contextmanager
def fixed_noise(seed: int) -> Iterator[None]:
    """Within this context stochastic log-dets repeat: a row's noise follows from its place in the batch.

    The same inputs give the same estimate, in train and eval mode, whose probes do not move with x. Its gradient is
    its exact derivative for a `PowerSeries` with `Autograd`, as samplers need that differentiate a density; that of
    `Neumann` is unbiased for the one of the log-det, but not the derivative of the value. Rows are evaluated all at
    once, whatever ``chunk_size``. Each transform mixes ``seed`` with one of its own, so estimates of different
    transforms, copies included, stay independent.

    Args:
        seed: Any integer.

    Raises:
        TypeError: ``seed`` is no integer.

    Example:
        >>> transform = ResidualTransform(LipschitzMLP(2), logdet=PowerSeries())
        >>> x = torch.randn(5, 2)
        >>> with fixed_noise(0):
        ...     torch.equal(transform(x)[1], transform(x)[1])
        True
    """
    require_ints("fixed_noise", seed=seed)
    with _conditions(current_conditions()._replace(seed=seed)):
        yield


@contextlib.contextmanager
def no_logdet() -> Iterator[None]:
    """Within this context residual transforms skip the log-det and return zeros for it, which makes sampling cheaper.

    Example:
        >>> transform = ResidualTransform(LipschitzMLP(2))
        >>> with no_logdet():
        ...     x, zeros = transform.inverse(torch.randn(5, 2))
    """
    with _conditions(current_conditions()._replace(skip=True)):
        yield


def current_conditions() -> Conditions:
    """Those of the innermost contexts."""
    if _FOLLOWED and torch.compiler.is_compiling():
        return Conditions(_of_thread.seed, _of_thread.skip)
    return _current.get()


@contextlib.contextmanager
def _conditions(conditions: Conditions) -> Iterator[None]:
    before = current_conditions()
    token = None if _FOLLOWED and torch.compiler.is_compiling() else _current.set(conditions)
    _of_thread.seed, _of_thread.skip = conditions
    try:
        yield
    finally:
        _of_thread.seed, _of_thread.skip = before
        if token is not None:
            _current.reset(token)


class Replay:
    """The conditions of a module's last pass, for when checkpointing repeats it, in a backward pass outside of them."""

    def __init__(self) -> None:
        self._last = Conditions()

    def __call__(self) -> contextlib.AbstractContextManager[None]:
        """Returns to them inside a backward pass, and keeps the present ones outside."""
        present = current_conditions()
        if torch.compiler.is_compiling():
            return contextlib.nullcontext()
        if not in_backward():
            self._last = present
        elif present == Conditions() and self._last != present:
            return _conditions(self._last)
        return contextlib.nullcontext()

    def fixes_noise(self) -> bool:
        """Whether a pass is repeated now that was made within `fixed_noise`."""
        return in_backward() and self._last.seed is not None


def in_backward() -> bool:
    """Whether the caller runs inside a backward pass, as a checkpointed forward pass does when it is repeated."""
    return torch._C._current_graph_task_id() != -1
