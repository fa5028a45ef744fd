"""What a law is checked on, and a way of running it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from flowplug._arguments import require_instance, require_ints
from flowplug._errors import FlowplugError, StartWarning
from flowplug._noise import no_logdet
from flowplug._start import starting

Direction = Callable[..., tuple[Tensor, Tensor]]


class InWay(nn.Module):
    """A transform whose directions are called in another way; its parameters and state are the transform's own.

    Args:
        transform: The transform.
        forward: How `forward` is called instead.
        inverse: How `inverse` is called instead.
        around: A context in which both are called.
    """

    transform: nn.Module

    def __init__(
        self,
        transform: Any,  # noqa: ANN401 -- a host's module
        *,
        forward: Direction | None = None,
        inverse: Direction | None = None,
        around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        super().__init__()
        self.transform = transform
        # In a tuple, as what wraps the transform is often a module, and must not be registered a second time.
        self._directions = (transform if forward is None else forward, inverse or transform.inverse)
        self._around = around

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The transform's own, in this way."""
        with self._around():
            return self._directions[0](x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The transform's own, in this way."""
        with self._around():
            return self._directions[1](y, context)


@dataclass(frozen=True)
class Way:
    """A way of running a transform.

    Attributes:
        wrap: Makes a transform, past its start, run in this way: returns that module, a copy, or an `InWay`.
        around: The context in which a law is checked.
        unavailable: The reason why this machine lacks the way for these inputs, or ``None``.
        lacks: What laws may need and this way has not, with the reason: "gradients", "precision", ...
        dtype: The dtype of the inputs and weights, if it has to be another than the case's.
        device: Their device, likewise.
        loose: The error of the forward pass that the way allows, relative to the largest value.
        same_noise: Whether log-dets draw the same numbers as eagerly, from the same generator.
        refuses: The errors by which a transform may refuse the way.
    """

    wrap: Callable[[Case, Any], Any] = lambda case, transform: transform
    around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    unavailable: Callable[[Case], str | None] = lambda case: None
    lacks: Mapping[str, str] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    device: str | None = None
    loose: float | None = None
    same_noise: bool = True
    refuses: tuple[type[FlowplugError], ...] = ()


EAGER = Way()


@dataclass(frozen=True)
class Case:
    """What a law is checked on.

    Attributes:
        make: Builds a fresh transform, and passes keywords on to its constructor.
        x: Inputs ``(B, *event)`` with B >= 2, in the dtype and on the device to test.
        context: ``(B, context_features)``, or ``None`` for an unconditional transform.
        draws: Number of draws of each z-test.
        way: The way of running.
        support: The interval that inputs must lie in.
    """

    make: Callable[..., nn.Module]
    x: Tensor
    context: Tensor | None = None
    draws: int = 400
    way: Way = EAGER
    support: tuple[float, float] = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        if isinstance(self.make, nn.Module) or not callable(self.make):
            raise TypeError(
                "check_transform(make=...) must build a fresh transform, as lambda **keywords: Mine(2, **keywords) "
                f"does; got an object of class {type(self.make).__name__}"
            )
        require_instance("check_transform", "x", self.x, Tensor, "torch.randn(4, 2)")
        if self.context is not None:
            require_instance("check_transform", "context", self.context, Tensor, "torch.randn(4, 3)")
        require_ints("check_transform", draws=self.draws)

    def within(self, way: Way) -> Case:
        """The same case in a way, with its dtype and device."""
        device, dtype = way.device or self.x.device, way.dtype or self.x.dtype
        context = None if self.context is None else self.context.to(device, dtype)
        return dataclasses.replace(self, x=self.x.to(device, dtype), context=context, way=way)

    @cached_property
    def y(self) -> Tensor:
        """Latents ``(B, *latent)``: the numbers of x in the shape in which the transform returns them."""
        with torch.random.fork_rng(devices=[self.x.device] if self.x.is_cuda else []), torch.no_grad():
            shape = _output(self.fresh(), self.x, self.context).shape
        return self.x if shape == self.x.shape else self.x.reshape(shape)

    def fresh(self) -> Any:  # noqa: ANN401 -- a host's module
        """A transform that has seen no data, in train mode, run eagerly."""
        return self.make().to(self.x.device, self.x.dtype).train()

    def start(self) -> Any:  # noqa: ANN401 -- a host's module
        """A transform past its data-dependent initialisation, in train mode, run eagerly."""
        transform = self.fresh()
        meet(transform, self.x, self.context)
        return transform

    def build(self, *, training: bool) -> Any:  # noqa: ANN401 -- a host's module
        """A transform past its data-dependent initialisation, in this way of running."""
        return self.way.wrap(self, self.start()).train(training)

    def twin(self, transform: nn.Module) -> Any:  # noqa: ANN401 -- a host's module
        """A fresh module with the present weights of a built one, run eagerly."""
        with torch.inference_mode(mode=False):
            twin = self.fresh()
            twin.load_state_dict({name: whole(value).clone() for name, value in inner(transform).state_dict().items()})
        return twin

    def inside(self, x: Tensor) -> Tensor:
        """Inputs that may have left the support, moved and shrunk into it."""
        low, high = self.support
        if not math.isfinite(high - low):
            return x
        share = (x - x.min()) / (x.max() - x.min())
        return low + (high - low) * (0.05 + 0.9 * share)

    def rows(self, count: int) -> tuple[Tensor, Tensor | None]:
        """So many inputs, and contexts, each a random mean of three given ones."""
        shares = torch.zeros(count, len(self.x), dtype=self.x.dtype, device=self.x.device)
        for _ in range(3):
            index = torch.randint(len(self.x), (count, 1), device=shares.device)
            shares.scatter_add_(1, index, torch.rand(count, 1, dtype=shares.dtype, device=shares.device))
        shares = shares / shares.sum(1, keepdim=True)
        x = (shares @ self.x.flatten(1)).reshape(count, *self.x.shape[1:])
        return x, None if self.context is None else shares @ self.context


@torch.no_grad()
def meet(transform: Any, x: Tensor, context: Tensor | None) -> None:  # noqa: ANN401 -- a host's module
    """Starts a transform in train mode from these rows, however few, if it starts from data."""
    _output(transform, x, context)


def _output(transform: Any, x: Tensor, context: Tensor | None) -> Tensor:  # noqa: ANN401 -- a host's module
    with warnings.catch_warnings(), starting(transform):
        warnings.simplefilter("ignore", StartWarning)  # which says that they are few
        y: Tensor = transform(x, context)[0]
    return y


def inner(transform: nn.Module) -> Any:  # noqa: ANN401 -- a host's module
    """The transform itself."""
    return transform.transform if isinstance(transform, InWay) else transform


def whole(value: Tensor) -> Tensor:
    """A tensor that may be sharded, as one."""
    gather: Callable[[], Tensor] | None = getattr(value, "full_tensor", None)
    return value if gather is None else gather()


def leaves(case: Case, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Inputs ``x`` and the context, for a gradient by them."""
    return x.detach().clone().requires_grad_(), (
        None if case.context is None else case.context.detach().clone().requires_grad_()
    )


def directions(case: Case, transform: Any) -> Iterator[tuple[str, Direction, Tensor, Tensor]]:  # noqa: ANN401 -- a host's
    """Both, with their names, inputs, and something of the shape of their outputs."""
    yield "forward", transform, case.x, case.y
    yield "inverse", transform.inverse, case.y, case.x


def exact_ladj(transform: Direction, x: Tensor, context: Tensor | None, *, differentiable: bool) -> Tensor:
    """log|det| of the autograd Jacobian of ``forward``, ``(B,)``."""
    matrix = jacobian(transform, x, context, differentiable=differentiable)
    ladj: Tensor = torch.linalg.slogdet(matrix).logabsdet
    return ladj


def jacobian(transform: Direction, x: Tensor, context: Tensor | None, *, differentiable: bool) -> Tensor:
    """The autograd Jacobian of ``forward``, ``(B, D, D)``."""
    size = math.prod(x.shape[1:])
    point = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
    with no_logdet():
        flat = transform(point, context)[0].reshape(len(x), size)
    rows = [
        torch.autograd.grad(flat[:, i].sum(), point, retain_graph=True, create_graph=differentiable)[0].flatten(1)
        for i in range(size)
    ]
    return torch.stack(rows, dim=1)
