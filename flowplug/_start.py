"""Transforms that start from data: when they do, how it is asked for by name, and undone."""

import abc
import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from flowplug._errors import NonFiniteError, ShapeError, StartWarning
from flowplug._noise import in_backward, no_logdet
from flowplug._precision import at_least_single, full_precision
from flowplug._reading import known, refuse_non_finite


class FromData(nn.Module, abc.ABC):
    """What a transform inherits, before `Transform`, to start from data.

    Rows that `forward` meets in train mode are taken in until there are enough of them, each batch before it is mapped;
    from then on the map stays. The state lives in buffers of fixed shape, and ``started`` among them says how far the
    start has come, from 0 to 1: a number, as truth values cannot be averaged.

    A subclass sets ``rows_needed`` and implements `_take_in` and `_forget`. Its ``_forward`` calls `_meet` first, its
    ``_inverse`` `_keep`; either reads buffers of the start through `_steady`.
    """

    event_dim: int
    rows_needed: int
    started: Tensor
    _asked = False
    _warned = False
    _over: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("started", torch.zeros(()))

    @property
    def initialized(self) -> bool:
        """Whether the start is over, so that the map stays."""
        return bool(self.started >= 1)

    @abc.abstractmethod
    def _take_in(self, rows: Tensor, seen: float) -> None:
        """Takes in rows ``(N, *event)``, N >= 1, after ``seen`` others; its first write depends on the rows."""

    @abc.abstractmethod
    def _forget(self) -> None:
        """Makes the buffers and parameters of the start what they were at construction."""

    def _meet(self, x: Tensor) -> None:
        if not torch.compiler.is_compiling():
            self._look(x)
        elif self._asked or (self.training and self._over is not self.started):
            # A start is no part of a graph, which breaks here until it is over: call start(x) before, and it is one.
            torch.compiler.disable(self._look)(x)  # type: ignore[no-untyped-call]

    def _look(self, x: Tensor) -> None:
        if self._asked:
            self._asked = False
            self._start_over(x)
        elif (
            self.training and x.numel() and not self._is_over() and not in_backward()
        ):  # rows of a repeated pass have been counted
            self._learn(x)

    def _keep(self) -> None:
        if self._asked:
            self._asked = False
            self._finish()
        elif self.training and torch.is_grad_enabled() and not self._is_over() and not float(self.started):
            # What is trained through its inverse must not be changed by the first data that come along.
            self._finish()
            self._say(
                f"{type(self).__name__} was inverted in train mode, with gradients, before it met data: it will not "
                "start from data any more, which is right if the flow is trained by its samples. Else call start(x) "
                "(of a flow of a host, start(flow, x) of its adapter), and sample in eval mode or under no_grad"
            )

    def _steady(self, buffer: Tensor) -> Tensor:
        """The buffer, or a copy for a graph that may outlive the next batch of the start."""
        return buffer.clone() if torch.is_grad_enabled() and self._over is not self.started else buffer

    def _is_over(self) -> bool:
        # The buffer that was read: what else is put in its place, by whatever way, is read again.
        if self._over is not self.started:
            over = known(self.started >= 1)
            if over is None:
                return True
            if over:
                self._over = self.started
        return self._over is self.started

    def _start_over(self, x: Tensor) -> None:
        count = self._count(x)
        if count < 2:
            raise ShapeError(f"{type(self).__name__}: a start takes at least 2 rows of data; got {count}")
        self._reset()
        self._learn(x, last=True)

    @torch.no_grad()
    def _learn(self, x: Tensor, *, last: bool = False) -> None:
        count, seen = self._count(x), float(self.started) * self.rows_needed
        rows = at_least_single(x.detach()).reshape(count, *x.shape[x.dim() - self.event_dim :])
        self._refuse(rows)
        try:
            with full_precision(x):
                self._take_in(rows, seen)
        except RuntimeError as error:
            if "vmap" not in str(error) and "captured Tensor" not in str(error):
                raise
            self._say(
                f"{type(self).__name__} cannot start from data inside a transform of torch.func, and stays as it is: "
                "call start(x) before"
            )
            return
        if last or seen + count >= self.rows_needed:
            self._finish()
        else:
            self.started.fill_((seen + count) / self.rows_needed)
            self._say(
                f"{type(self).__name__} has met {round(seen) + count} of the {self.rows_needed} rows that its start "
                "from data takes: in train mode it moves with every batch until then. To start at once, from more "
                "rows, call start(x) (of a flow of a host, start(flow, x) of its adapter)"
            )

    def _refuse(self, rows: Tensor) -> None:
        refuse_non_finite(type(self).__name__, "input", rows)  # which on a GPU has been put off, and is read now anyway
        if known(rows.abs().amax() <= torch.finfo(rows.dtype).max / rows.numel()) is False:
            raise NonFiniteError(
                f"{type(self).__name__}: sums of the input overflow in {rows.dtype}: rescale it, or use torch.float64"
            )

    def _count(self, x: Tensor) -> int:
        return x.shape[: x.dim() - self.event_dim].numel()

    def _finish(self) -> None:
        self.started.fill_(1)
        self._over = self.started

    @torch.no_grad()
    def _reset(self) -> None:
        self.started.zero_()
        self._over, self._warned = None, False
        self._forget()

    def _say(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(message, StartWarning, stacklevel=2)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401 -- torch's
        if f"{prefix}initialized" in state_dict:
            dtype = state_dict[f"{prefix}mean"].dtype
            state_dict[f"{prefix}started"] = state_dict.pop(f"{prefix}initialized").to(dtype)
            self._upgrade(state_dict, prefix)
        self._over, self._warned = None, False
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _upgrade(self, state: dict[str, Any], prefix: str) -> None:
        """Makes of what version 0.2 and those before it saved, beside ``started``, what is saved today."""


@contextlib.contextmanager
def starting(module: nn.Module) -> Iterator[None]:
    """Within this context the next pass from data to latent starts all parts of a module that start from data.

    Each starts when the pass comes to it, from what the parts before it make of the rows, in train and eval mode. Parts
    that the pass runs backwards, or not at all, stay as they are.

    Args:
        module: A transform, or a host's flow that contains some.

    Example:
        >>> from flowplug import hosts
        >>> flow = nn.Sequential(ActNorm(2))  # a host's
        >>> with hosts.starting(flow):
        ...     y, _ = flow(torch.randn(100, 2))
    """
    parts = [part for part in module.modules() if isinstance(part, FromData)]
    for part in parts:
        part._asked = True
    try:
        with torch.no_grad(), no_logdet():
            yield
    finally:
        for part in parts:
            part._asked = False


def reset(module: nn.Module) -> None:
    """Undoes the starts from data within a module: its `ActNorm`, `Whitening` and the like are as new, and start again.

    Args:
        module: A transform, or a host's flow that contains some. Other parameters stay as they are.

    Example:
        >>> from flowplug import hosts
        >>> flow = nn.Sequential(ActNorm(2))  # a host's
        >>> y, _ = flow(5 + torch.randn(100, 2))
        >>> hosts.reset(flow)
        >>> flow[0].mean
        tensor([0., 0.])
    """
    for part in module.modules():
        if isinstance(part, FromData):
            part._reset()
