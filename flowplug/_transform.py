"""The protocol every flowplug transform follows, and the two ways to combine transforms.

Conventions, stated once. ``forward`` maps data to latent and is the cheap direction; ``inverse`` maps latent to data.
Both return the pair (output, ladj), where ladj is the log absolute determinant of the Jacobian of *the map just
applied*, in nats, so that ``log p(x) = log base(y) + ladj`` with ``y, ladj = transform(x)``. Events have ``event_dim``
trailing dimensions; any number of batch dimensions, none and empty ones included, stand before them.
"""

import abc
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from flowplug._arguments import require_instance
from flowplug._errors import (
    ContextError,
    DeviceError,
    DtypeError,
    FlowplugError,
    InverseNotAvailable,
    NonFiniteError,
    ShapeError,
)
from flowplug._precision import full_precision
from flowplug._reading import Later, first_parameter, known_number, transformed
from flowplug._start import reset, starting


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
    event_shape: tuple[int | None, ...] | None = None
    context_features: int = 0

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps data to latent.

        Args:
            x: Data, shape ``(*batch, *event)``.
            context: Shape ``(*batch, context_features)``; batch shapes broadcast against each other.

        Returns:
            The latent ``y`` of shape ``(*batch, *event)``, and its log-det ``(*batch,)`` in nats.

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
            y: Latent, shape ``(*batch, *event)``.
            context: As in `forward`.

        Returns:
            The data ``x`` of shape ``(*batch, *event)``, and the log-det of the inverse map, ``(*batch,)`` in nats,
            which is minus that of `forward` at ``x``.

        Raises:
            InverseNotAvailable: The transform has no inverse.
            NotConverged: A numerical inverse did not reach its tolerance.
            FlowplugError: As in `forward`.
        """
        y, context = self._check(y, context)
        kind = y.device.type
        if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            return self._inverse(y, context)
        # An inverse is asked for with a precision that autocast does not have.
        like = self._like()
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
        name, like = type(self).__name__, self._like()
        if like is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling() and like.is_inference():
            raise DtypeError(
                f"the weights of {name} were made inside torch.inference_mode, and have no derivatives: make it "
                "outside, or call it under torch.no_grad()"
            )
        _check_tensor(self, "input", x, like=like)
        split = x.dim() - self.event_dim
        if split < 0 or not _fits(x.shape[split:], self.event_shape):
            wanted = f"{self.event_dim} event dimension(s)" if self.event_shape is None else f"{self.event_shape}"
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


def _fits(shape: Sequence[int], pattern: tuple[int | None, ...] | None) -> bool:
    return pattern is None or all(wanted in (None, got) for got, wanted in zip(shape, pattern, strict=True))


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
    # One kernel: a NaN or infinity anywhere leaves its mark on the sum. So does an overflow, hence the second look.
    # Inside vmap it cannot be read.
    elif not math.isfinite(known_number(x.detach().sum()) or 0.0) and not (entries := x.isfinite()).all():
        bad = (~entries).nonzero()
        raise NonFiniteError(
            f"{name}: the {role} holds {len(bad)} NaN or infinite value(s), the first at index {tuple(bad[0].tolist())}"
        )


class ComposedTransform(Transform):
    r"""Applies transforms one after the other, :math:`f = f_n \circ \dots \circ f_1`; ladjs add up.

    Args:
        transforms: In data-to-latent order; all of one ``event_dim``. Conditional ones share the context.

    Raises:
        ShapeError: There are no transforms, or their ``event_dim`` differ.
        ContextError: Conditional transforms disagree on the width of the context.

    Example:
        >>> flow = ComposedTransform(ActNorm(2), ResidualTransform(LipschitzMLP(2)))
        >>> y, ladj = flow(torch.randn(5, 2))
        >>> y.shape, ladj.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(self, *transforms: Transform) -> None:
        super().__init__()
        for transform in transforms:
            if isinstance(transform, Sequence):
                raise TypeError("ComposedTransform takes transforms one by one: ComposedTransform(*transforms)")
            require_instance("ComposedTransform", "transforms", transform, Transform, "ActNorm(2)")
        dims = sorted({transform.event_dim for transform in transforms})
        if len(dims) != 1:
            raise ShapeError(f"ComposedTransform needs one or more transforms of one event_dim; got event_dims {dims}")
        widths = sorted({transform.context_features for transform in transforms} - {0})
        if len(widths) > 1:
            raise ContextError(f"ComposedTransform got transforms that want contexts of different widths {widths}")
        self.transforms = nn.ModuleList(transforms)
        self.event_dim = dims[0]
        self.event_shape = transforms[0].event_shape
        self.context_features = widths[0] if widths else 0

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[: x.dim() - self.event_dim])
        for transform in self.transforms:
            x, ladj = transform(x, context)
            total = total + ladj
        return x, total

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        total = y.new_zeros(y.shape[: y.dim() - self.event_dim])
        for transform in reversed(self.transforms):
            y, ladj = cast(Transform, transform).inverse(y, context)
            total = total + ladj
        return y, total


class InverseTransform(Transform):
    r"""Swaps the directions of a transform: :math:`y = f^{-1}(x, c)`.

    Args:
        transform: The transform :math:`f`.

    Example:
        >>> transform = InverseTransform(ActNorm(2).eval())
        >>> y, ladj = transform(torch.randn(5, 2))
    """

    transform: Transform

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        require_instance("InverseTransform", "transform", transform, Transform, "ActNorm(2)")
        self.transform = transform
        self.event_dim = transform.event_dim
        self.event_shape = transform.event_shape
        self.context_features = transform.context_features

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(x, context)

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform.forward(y, context)
