"""The protocol every flowplug transform follows.

Conventions, stated once. ``forward`` maps data to latent and is the cheap direction; ``inverse`` maps latent to data.
Both return the pair (output, ladj), where ladj is the log absolute determinant of the Jacobian of *the map just
applied*, in nats, so that ``log p(x) = log base(y) + ladj`` with ``y, ladj = transform(x)``. Events have ``event_dim``
trailing dimensions; any number of batch dimensions, none and empty ones included, stand before them.
"""

import abc
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowplug._errors import (
    ContextError,
    DeviceError,
    DtypeError,
    FlowplugError,
    InverseNotAvailable,
    NonFiniteError,
    ShapeError,
)
from flowplug._precision import autocast_enabled, full_precision
from flowplug._reading import Later, first_parameter, refuse_non_finite, transformed
from flowplug._start import reset, starting

Shape = tuple[int | None, ...]  # sizes of an event, None where one is not known, or any fits


class Transform(nn.Module, abc.ABC):
    r"""An invertible map :math:`y = f(x, c)` of events, conditioned on an optional context.

    A subclass sets ``event_dim`` and implements ``_forward`` and ``_inverse``, which receive checked tensors: floating
    point, finite, on the parameters' device and in their dtype, with the context broadcast to the batch shape or
    ``None``. An unconditional transform (``context_features == 0``) drops any context unread, so that hosts may pass
    one to every layer.

    In a flow of another library it belongs into the wrapper of that library's adapter. Straight into a host whose
    ``forward`` goes from latent to data it would run backwards, with nothing for either to notice.

    Attributes:
        event_dim: Number of trailing dimensions that form one event.
        event_shape: Sizes of those dimensions, ``None`` where any size fits; ``None`` altogether when unknown.
        context_features: Width of the context, 0 for an unconditional transform.

    Example:
        >>> class Shift(Transform):
        ...     event_dim = 1
        ...     def _forward(self, x, context):
        ...         return x + 1, x.new_zeros(x.shape[:-1])
        ...     def _inverse(self, y, context):
        ...         return y - 1, y.new_zeros(y.shape[:-1])
        >>> Shift().inverse(torch.zeros(5, 2))[0][0]
        tensor([-1., -1.])
    """

    event_dim: int
    event_shape: Shape | None = None
    context_features: int = 0

    @property
    def latent_dim(self) -> int:
        """Number of trailing dimensions that form one event of the latent, ``event_dim`` unless the shape changes."""
        return self.event_dim

    @property
    def latent_shape(self) -> Shape | None:
        """Sizes of those dimensions, as far as they are known, like ``event_shape``."""
        return None if self.event_shape is None else self._forward_shape(self.event_shape)

    def forward_shape(self, event: Sequence[int | None]) -> Shape:
        """The sizes of the latent for those of an event, ``None`` where a size is not known.

        Raises:
            ShapeError: No event has these sizes.

        Example:
            >>> Squeeze(2).forward_shape((3, 32, 32)), ActNorm(2).forward_shape((None,))
            ((12, 16, 16), (2,))
        """
        return self._forward_shape(_merge(type(self).__name__, event, self.event_dim, self.event_shape))

    def inverse_shape(self, latent: Sequence[int | None]) -> Shape:
        """The sizes of an event for those of the latent, ``None`` where a size is not known.

        Raises:
            ShapeError: No latent has these sizes.
        """
        return self._inverse_shape(_merge(f"{type(self).__name__}.inverse", latent, self.latent_dim, self.latent_shape))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps data to latent.

        Args:
            x: Data, shape ``(*batch, *event)``.
            context: Shape ``(*batch, context_features)``; batch shapes broadcast against each other.

        Returns:
            The latent ``y`` of shape ``(*batch, *latent)``, and its log-det ``(*batch,)`` in nats.

        Raises:
            ShapeError: The event shape is wrong, or the batch shapes do not broadcast.
            DtypeError: ``x`` is not floating point or differs in dtype from the parameters.
            DeviceError: ``x`` is on another device than the parameters.
            NonFiniteError: ``x`` or the context holds NaN or infinity.
            ContextError: The context is missing or has the wrong width, dtype or device.
        """
        return self._forward(*self._check(x, context))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps latent to data.

        Args:
            y: Latent, shape ``(*batch, *latent)``.
            context: As in `forward`.

        Returns:
            The data ``x`` of shape ``(*batch, *event)``, and the log-det of the inverse map, ``(*batch,)`` in nats,
            which is minus that of `forward` at ``x``.

        Raises:
            InverseNotAvailable: The transform has no inverse.
            NotConverged: A numerical inverse did not reach its tolerance.
            FlowplugError: As in `forward`.
        """
        y, context = self._check_as(f"{type(self).__name__}.inverse", y, context, self.latent_dim, self.latent_shape)
        # An inverse is asked for with a precision that autocast does not have.
        like = self._like() if autocast_enabled(y) else None
        if like is not None:
            y, context = y.to(like.dtype), None if context is None else context.to(like.dtype)
        with full_precision(y):
            return self._inverse(y, context)

    def start(self, x: Tensor, context: Tensor | None = None) -> None:
        """Starts from data by name: sets whatever in this transform starts from data from these rows, anew.

        Each part starts from what the parts before it, started already, make of the rows, in train and eval mode: its
        outputs are standardised from there. Parts that `forward` runs backwards stay as they are, as does whatever does
        not start from data.

        Args:
            x: Data, shape ``(*batch, *event)``: as many rows as there are, or some thousands.
            context: As in `forward`.

        Raises:
            ShapeError: There are fewer than 2 rows, or as in `forward`.
            FlowplugError: As in `forward`.

        Example:
            >>> flow = ComposedTransform(Whitening(2), ActNorm(2))
            >>> flow.start(5 + 1e9 * torch.randn(1000, 2))
        """
        with starting(self):
            self(x, context)

    def reset(self) -> None:
        """Undoes `start`, and any other start from data: these parts are as new, and start from what comes next."""
        reset(self)

    @abc.abstractmethod
    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]: ...

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise InverseNotAvailable(f"{type(self).__name__} has no inverse")

    def _forward_shape(self, event: Shape) -> Shape:
        """As `forward_shape`, of sizes that fit."""
        return event

    def _inverse_shape(self, latent: Shape) -> Shape:
        """As `inverse_shape`, of sizes that fit."""
        return latent

    def _require_later(self, good: Tensor, message: str, kind: type[FlowplugError]) -> None:
        """Has a flag of a GPU looked at in one of the next passes."""
        later: Later = self.__dict__.setdefault("_later", Later())
        later.require(good, message, kind)

    def _like(self) -> Tensor | None:
        """A tensor of the dtype and on the device of the transform, if it has any."""
        like = first_parameter(self)
        if like is not None:
            return like
        own = (buffer for buffer in self._buffers.values() if buffer is not None and buffer.is_floating_point())
        return next(own, None)

    def _check(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self._check_as(type(self).__name__, x, context, self.event_dim, self.event_shape)

    def _check_as(
        self, name: str, x: Tensor, context: Tensor | None, event_dim: int, event_shape: Shape | None
    ) -> tuple[Tensor, Tensor | None]:
        like = self._like()
        if like is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling() and like.is_inference():
            raise DtypeError(
                f"the weights of {name} were made inside torch.inference_mode, and have no derivatives: make it "
                "outside, or call it under torch.no_grad()"
            )
        _check_tensor(self, "input", x, like=like)
        split = x.dim() - event_dim
        if split < 0 or not fits(x.shape[split:], event_shape):
            wanted = f"{event_dim} event dimension(s)" if event_shape is None else f"{event_shape}"
            raise ShapeError(f"{name} expects inputs (*batch, *event) with event {wanted}; got shape {tuple(x.shape)}")
        if self.context_features == 0:
            return x, None
        if context is None:
            raise ContextError(f"{name} is conditional: pass a context of shape (*batch, {self.context_features})")
        try:
            _check_tensor(self, "context", context, like=x)
        except (DtypeError, DeviceError) as error:
            raise ContextError(str(error)) from None
        if context.dim() == 0 or context.shape[-1] != self.context_features:
            raise ContextError(
                f"{name} expects a context of width {self.context_features}; got shape {tuple(context.shape)}"
            )
        try:
            batch = torch.broadcast_shapes(x.shape[:split], context.shape[:-1])  # type: ignore[no-untyped-call]
        except RuntimeError:
            raise ShapeError(
                f"{name}: batch shape {tuple(x.shape[:split])} of the input does not broadcast against "
                f"{tuple(context.shape[:-1])} of the context"
            ) from None
        return x.expand(*batch, *x.shape[split:]), context.expand(*batch, self.context_features)


def fits(shape: Sequence[int], pattern: Shape | None) -> bool:
    """Whether sizes are those of a pattern, where that says any."""
    if pattern is None:
        return True
    return len(shape) == len(pattern) and all(want in (None, got) for got, want in zip(shape, pattern, strict=True))


def _merge(name: str, sizes: Sequence[int | None], event_dim: int, event_shape: Shape | None) -> Shape:
    """What is known of an event by either."""
    pattern = (None,) * event_dim if event_shape is None else event_shape
    pairs = list(zip(sizes, pattern, strict=False))
    if len(sizes) != event_dim or any(None not in pair and pair[0] != pair[1] for pair in pairs):
        wanted = f"of {event_dim} dimension(s)" if event_shape is None else f"{event_shape}"
        raise ShapeError(f"{name} takes events {wanted}; got {tuple(sizes)}")
    return tuple(size if known is None else known for size, known in pairs)


def _check_tensor(transform: Transform, role: str, x: Tensor, *, like: Tensor | None) -> None:
    name = type(transform).__name__
    if not isinstance(x, Tensor):
        # Some hosts call a part with a context, or none, for a map of this context.
        hint = "; in a flow of another library, use the wrapper of its adapter" if x is None else ""
        raise DtypeError(f"{name} expects its {role} as a torch.Tensor; got {type(x).__name__}{hint}")
    if not x.is_floating_point() or x.dtype.itemsize < 2:  # those of 8 bits are for storage
        raise DtypeError(f"{name} expects a floating-point {role}; got {x.dtype}: convert it, e.g. by .float()")
    if like is not None:
        if x.device != like.device:
            raise DeviceError(f"{name}: the {role} is on {x.device}, expected {like.device}: move one of them")
        # Autocast itself reconciles dtypes.
        if x.dtype != like.dtype and not torch.is_autocast_enabled(x.device.type):
            raise DtypeError(f"{name}: the {role} is {x.dtype}, expected {like.dtype}: convert one of them")
    if torch.compiler.is_compiling():
        torch._assert_async(x.detach().isfinite().all(), f"{name}: the {role} holds NaN or infinite values")
    elif transform.training and x.is_cuda and not transformed():
        message = f"{name}: the {role} of the last pass held NaN or infinite values"
        transform._require_later(x.detach().isfinite().all(), message, NonFiniteError)
    else:
        refuse_non_finite(name, role, x.detach())
