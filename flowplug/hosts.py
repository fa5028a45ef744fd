"""What an adapter needs to make a host's transform a flowplug transform; no host is imported or named here."""

import abc
import importlib.util
import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowplug._arguments import as_shape as as_shape
from flowplug._arguments import described
from flowplug._arguments import given as given
from flowplug._arguments import require_bools as require_bools
from flowplug._arguments import require_instance as require_instance
from flowplug._arguments import require_ints as require_ints
from flowplug._arguments import require_numbers as require_numbers
from flowplug._arguments import require_part as require_part
from flowplug._arguments import require_positive as require_positive
from flowplug._arguments import require_shape as require_shape
from flowplug._composition import ComposedTransform
from flowplug._errors import ContextError, ShapeError
from flowplug._noise import current_conditions, in_backward
from flowplug._reading import mapped
from flowplug._residual import ResidualTransform
from flowplug._start import reset as reset
from flowplug._start import starting as starting
from flowplug._transform import Shape as Shape
from flowplug._transform import Transform, fits

Pair = tuple[Tensor, Tensor | float]


class HostTransform(Transform):
    """A host's transform behind flowplug's protocol.

    An adapter implements the two directions for inputs ``(B, *event)`` and a context ``(B, context_features)``. It may
    return the log-det as a number, as one entry for all samples, or with element-wise dimensions kept. One whose host
    changes the shape of events says how in ``_forward_shape`` and ``_inverse_shape``.

    Args:
        host: The host's transform.
        event_dim: Number of trailing dimensions that form one event.
        context_features: Width of the context, 0 for none.

    Raises:
        ShapeError: ``event_dim`` is below 1.
        ContextError: ``context_features`` is negative.

    Example:
        >>> class Exponential(nn.Module):  # a host's transform
        ...     def call(self, x):
        ...         return x.exp(), x.sum(1)
        >>> class Bridge(HostTransform):
        ...     def _to_latent(self, x, context):
        ...         return self.host.call(x)
        ...     def _to_data(self, y, context):
        ...         return y.log(), -y.log()
        >>> transform = Bridge(Exponential(), event_dim=1, context_features=0)
        >>> transform.inverse(torch.ones(5, 2))[1]
        tensor([0., 0., 0., 0., 0.])
    """

    host: Any

    def __init__(self, host: Any, *, event_dim: int, context_features: int) -> None:  # noqa: ANN401 -- a host's own
        super().__init__()
        require_ints(type(self).__name__, event_dim=event_dim, context_features=context_features)
        if event_dim < 1:
            raise ShapeError(f"a bridged transform needs an event_dim of at least 1; got {event_dim}")
        if context_features < 0:
            raise ContextError(f"context_features must not be negative; got {context_features}")
        self.host = host
        self.event_dim = event_dim
        latent = self._forward_shape((None,) * event_dim)
        self._latent_dim = len(latent)
        sizes = self._inverse_shape(latent)
        self.event_shape = sizes if any(size is not None for size in sizes) else None
        self.context_features = context_features

    def extra_repr(self) -> str:
        """Names what was found, and a host's transform that is no module."""
        host = "" if isinstance(self.host, nn.Module) else f"{self.host}, "
        return f"{host}event_dim={self.event_dim}, context_features={self.context_features}"

    @property
    def latent_dim(self) -> int:
        """As many dimensions as the host returns."""
        return self._latent_dim

    @abc.abstractmethod
    def _to_latent(self, x: Tensor, context: Tensor | None) -> Pair: ...

    @abc.abstractmethod
    def _to_data(self, y: Tensor, context: Tensor | None) -> Pair: ...

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        split = x.dim() - self.event_dim
        return self._run(self._to_latent, x, context, x.shape[:split], self._forward_shape(tuple(x.shape[split:])))

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        split = y.dim() - self.latent_dim
        return self._run(self._to_data, y, context, y.shape[:split], self._inverse_shape(tuple(y.shape[split:])))

    def _run(
        self,
        direction: Callable[[Tensor, Tensor | None], Pair],
        x: Tensor,
        context: Tensor | None,
        batch: torch.Size,
        wanted: Shape,
    ) -> tuple[Tensor, Tensor]:
        """Calls the host with rows of ``batch`` events, and takes what it returns for events of the wanted sizes."""
        event = x.shape[len(batch) :]
        if x.numel() == 0:  # hosts take minima over the batch, and infer its size
            return x.reshape(*batch, *(size or 0 for size in wanted)).clone(), x.new_zeros(batch)
        # A copy, as hosts write on their inputs.
        rows = x.reshape(batch.numel(), *event).clone()
        if context is not None:
            context = context.reshape(batch.numel(), self.context_features)
        y, ladj = direction(rows, context)
        if len(y) != len(rows) or not fits(y.shape[1:], wanted):
            raise ShapeError(
                f"{type(self.host).__name__} maps events of shape {tuple(event)} to {tuple(y.shape[1:])}, where "
                f"{wanted} was expected: only the host's own classes may change the shape; use flowplug.Squeeze or "
                "flowplug.Reshape, or leave this one in its host, and bridge the parts before and after it"
            )
        ladj = torch.as_tensor(ladj, dtype=x.dtype, device=x.device)
        if ladj.dim() > 1:
            ladj = ladj.flatten(1).sum(1)
        # Hosts add to log-dets in place: every sample gets an entry of its own.
        return y.reshape(*batch, *y.shape[1:]), ladj.expand(rows.shape[0]).clone().reshape(batch)

    @staticmethod
    def _call(direction: Callable[..., Pair], x: Tensor, context: Tensor | None) -> Pair:
        return direction(x) if context is None else direction(x, context=context)


def check_host(
    function: str, transform: object, base: type | tuple[type, ...], instead: Mapping[type, str] | None = None
) -> None:
    """Raises a TypeError that says what was given, and what to call or pass, unless it is of the host's base class.

    Hosts may have the same two methods, and opposite directions: only the class tells them apart.

    Args:
        function: The bridge that was called, ``from_host``.
        transform: What it was called with.
        base: The class of the host's transforms, or several.
        instead: For classes of the host that are no transforms, the first that fits: what they are, and what to pass.
    """
    if isinstance(transform, base):
        return
    first = base[0] if isinstance(base, tuple) else base
    raise TypeError(f"{function} takes a {_path(first)}; got {_given(function, transform, instead or {})}")


def _given(function: str, transform: object, instead: Mapping[type, str]) -> str:
    if isinstance(transform, type) or inspect.isroutine(transform):
        return f"{_path(transform)} itself: call it, and pass what it returns"
    name = _path(type(transform))
    if isinstance(transform, Transform):
        return f"{name}, a flowplug transform already: use it as it is"
    if isinstance(getattr(transform, "core", None), Transform):
        return f"{name}, which wraps a flowplug transform: use that, its core"
    for kind, advice in instead.items():
        if isinstance(transform, kind):
            return f"{name}, {advice}"
    # Of a copy of a host inside another library, the second name tells the host.
    names = (name for ancestor in type(transform).__mro__ for name in ancestor.__module__.split(".")[:2])
    for host in dict.fromkeys(names):
        if function != f"from_{host}" and importlib.util.find_spec(f"flowplug_{host}") is not None:
            return f"{name}, which belongs to {host}: use flowplug_{host}.from_{host}"
    if isinstance(transform, nn.Module):
        return f"{name}, a module that is no transform: a network goes into flowplug.ResidualTransform(g)"
    return described(transform)


def _path(named: Any) -> str:  # noqa: ANN401 -- a class or function
    """Where a class or function is imported from, without private modules."""
    parts = named.__module__.removeprefix("builtins").split(".")
    public = itertools.takewhile(lambda part: part and not part.startswith("_"), parts)
    return ".".join([*public, named.__qualname__])


def draws_noise(transform: Transform) -> bool:
    """Whether a stochastic log-det would be drawn anew by every call: in train mode, and no noise is fixed.

    In a compiled graph a call is made once, and its numbers are drawn in the graph.
    """
    if torch.compiler.is_compiling() or not transform.training or current_conditions().seed is not None or mapped():
        return False
    residuals = (part for part in transform.modules() if isinstance(part, ResidualTransform))
    if not in_backward():
        return next(residuals, None) is not None
    return not any(part.replay.fixes_noise() for part in residuals)


def takes_context(method: Callable[..., object]) -> bool:
    """Whether the method has a parameter called context."""
    return "context" in inspect.signature(method).parameters


def context_width(host: nn.Module) -> int:
    """Width of the context for which the networks of nflows, normflows and flowplug within a transform were built.

    Raises:
        ContextError: They were built for different widths.
    """
    found = [getattr(module, "context_features", None) for module in host.modules()]
    found += [getattr(getattr(module, "context_layer", None), "in_features", None) for module in host.modules()]
    widths = sorted({width for width in found if isinstance(width, int)} - {0})
    if len(widths) > 1:
        raise ContextError(f"{type(host).__name__} has networks for contexts of widths {widths}: pass context_features")
    return widths[0] if widths else 0


def parts_of(transform: Transform) -> list[Transform]:
    """The transforms that a `flowplug.ComposedTransform` applies one after the other; of any other, itself.

    Example:
        >>> [type(part).__name__ for part in parts_of(ComposedTransform(ActNorm(2), Whitening(2)))]
        ['ActNorm', 'Whitening']
    """
    return list(transform.transforms) if isinstance(transform, ComposedTransform) else [transform]  # type: ignore[arg-type]


def latent_sizes(owner: str, transform: Transform) -> tuple[int, ...]:
    """The sizes of the latent of a transform, as a base distribution needs them.

    Raises:
        TypeError: This is no flowplug transform.
        ShapeError: Not all sizes are known.
    """
    require_instance(owner, "stack", transform, Transform, "flowplug.ImageStack((1, 28, 28))")
    sizes = transform.latent_shape or (None,)
    known = tuple(size for size in sizes if size is not None)
    if len(known) < len(sizes):
        raise ShapeError(
            f"{owner} needs a transform whose latent has known sizes; {type(transform).__name__} has latent_shape "
            f"{transform.latent_shape}: put flowplug.Reshape(event_shape, event_shape) in front, which knows them"
        )
    return known
