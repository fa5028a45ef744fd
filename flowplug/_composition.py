"""The two ways to combine transforms, and how a pass through several leaves what lies between them."""

import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from flowplug._arguments import require_instance
from flowplug._errors import ContextError, ShapeError
from flowplug._transform import Shape, Transform

# Calls a part by its name with what the part before it returned.
Call = Callable[[str, Transform, Tensor], tuple[Tensor, Tensor]]


class Composition(Transform, abc.ABC):
    """A transform that calls others, its parts, one after the other; a subclass says how in ``_through``."""

    @abc.abstractmethod
    def _through(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor]: ...

    @abc.abstractmethod
    def _parts(self) -> Iterator[tuple[str, Transform]]:
        """The parts in their order, each with its name, by which ``get_submodule`` finds it."""

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._through(x, lambda _, part, x: part(x, context))

    def forward_with_features(
        self, x: Tensor, context: Tensor | None = None, *, names: Sequence[str]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """As `forward`, in the same pass with the outputs of parts, as of a hybrid model that classifies by them.

        Args:
            x: Data, shape ``(*batch, *event)``.
            context: As in `forward`.
            names: Names of parts, by which ``get_submodule`` finds them: ``"transforms.0"`` for the first of a
                `ComposedTransform`, ``"transforms.0.scales.1"`` for one inside of it.

        Returns:
            The latent, its log-det, and the output of each of these parts, ``(*batch, *latent)``, by its name.

        Raises:
            ValueError: There is no part of a name.
            FlowplugError: As in `forward`.

        Example:
            >>> flow = ComposedTransform(ActNorm(1, event_dim=3), Squeeze(2))
            >>> y, ladj, features = flow.forward_with_features(torch.randn(5, 1, 4, 4), names=["transforms.0"])
            >>> features["transforms.0"].shape
            torch.Size([5, 1, 4, 4])
        """
        known = list(self._names())
        listed = list(names) if isinstance(names, Iterable) and not isinstance(names, str) else [""]
        if any(name not in known for name in listed):
            raise ValueError(
                f"{type(self).__name__}.forward_with_features(names=...) must be a list of names of its parts, "
                f"{', '.join(known)}; got {names!r}"
            )
        x, context = self._check(x, context)
        features: dict[str, Tensor] = {}

        def call(name: str, part: Transform, x: Tensor) -> tuple[Tensor, Tensor]:
            inside = [other.removeprefix(f"{name}.") for other in listed if other.startswith(f"{name}.")]
            if isinstance(part, Composition) and inside:
                y, ladj, found = part.forward_with_features(x, context, names=inside)
                features.update({f"{name}.{other}": feature for other, feature in found.items()})
            else:
                y, ladj = part(x, context)
            if name in listed:
                features[name] = y
            return y, ladj

        y, ladj = self._through(x, call)
        return y, ladj, features

    def _names(self) -> Iterator[str]:
        for name, part in self._parts():
            yield name
            if isinstance(part, Composition):
                yield from (f"{name}.{other}" for other in part._names())


class ComposedTransform(Composition):
    r"""Applies transforms one after the other, :math:`f = f_n \circ \dots \circ f_1`; ladjs add up.

    Args:
        transforms: In data-to-latent order; each takes events of the shape in which the one before returns them.
            Conditional ones share the context.

    Raises:
        ShapeError: There are no transforms, or one returns events that the next does not take.
        ContextError: Conditional transforms disagree on the width of the context.

    Example:
        >>> flow = ComposedTransform(ActNorm(2), ResidualTransform(LipschitzMLP(2)))
        >>> y, ladj = flow(torch.randn(5, 2))
        >>> y.shape, ladj.shape
        (torch.Size([5, 2]), torch.Size([5]))
        >>> flow = ComposedTransform(ActNorm(1, event_dim=3), Squeeze(2), ActNorm(4, event_dim=3))
        >>> flow(torch.randn(5, 1, 8, 8))[0].shape
        torch.Size([5, 4, 4, 4])
    """

    def __init__(self, *transforms: Transform) -> None:
        super().__init__()
        require_transforms("ComposedTransform", transforms)
        self.transforms = nn.ModuleList(transforms)
        self.context_features = shared_context("ComposedTransform", transforms)
        self.event_dim, self._latent_dim = transforms[0].event_dim, transforms[-1].latent_dim
        # To the latent, and back with what the later transforms know.
        sizes = chained("ComposedTransform", transforms)[-1]
        for transform in reversed(transforms):
            sizes = transform.inverse_shape(sizes)
        self.event_shape = sizes if any(size is not None for size in sizes) else None

    @property
    def latent_dim(self) -> int:
        """That of the last transform."""
        return self._latent_dim

    def _through(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[: x.dim() - self.event_dim])
        for name, part in self._parts():
            x, ladj = call(name, part, x)
            total = total + ladj
        return x, total

    def _parts(self) -> Iterator[tuple[str, Transform]]:
        return ((f"transforms.{number}", cast(Transform, part)) for number, part in enumerate(self.transforms))

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        total = y.new_zeros(y.shape[: y.dim() - self.latent_dim])
        for transform in reversed(self.transforms):
            y, ladj = cast(Transform, transform).inverse(y, context)
            total = total + ladj
        return y, total

    def _forward_shape(self, event: Shape) -> Shape:
        for transform in self.transforms:
            event = cast(Transform, transform).forward_shape(event)
        return event

    def _inverse_shape(self, latent: Shape) -> Shape:
        for transform in reversed(self.transforms):
            latent = cast(Transform, transform).inverse_shape(latent)
        return latent


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
        self.event_dim = transform.latent_dim
        self.event_shape = transform.latent_shape
        self.context_features = transform.context_features

    @property
    def latent_dim(self) -> int:
        """The ``event_dim`` of the transform."""
        return self.transform.event_dim

    @property
    def latent_shape(self) -> Shape | None:
        """The ``event_shape`` of the transform."""
        return self.transform.event_shape

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(x, context)

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor] = self.transform(y, context)
        return outputs

    def _forward_shape(self, event: Shape) -> Shape:
        return self.transform.inverse_shape(event)

    def _inverse_shape(self, latent: Shape) -> Shape:
        return self.transform.forward_shape(latent)


def require_transforms(owner: str, transforms: Sequence[Transform]) -> None:
    """Raises an error unless these are one or more transforms, given one by one."""
    for transform in transforms:
        if isinstance(transform, Sequence):
            raise TypeError(f"{owner} takes transforms one by one: {owner}(*transforms)")
        require_instance(owner, "transforms", transform, Transform, "ActNorm(2)")
    if not transforms:
        raise ShapeError(f"{owner} needs one or more transforms; got none")


def shared_context(owner: str, transforms: Sequence[Transform]) -> int:
    """The one width of context that the conditional ones among transforms want, 0 for none.

    Raises:
        ContextError: They want different widths.
    """
    widths = sorted({transform.context_features for transform in transforms} - {0})
    if len(widths) > 1:
        raise ContextError(f"{owner} got transforms that want contexts of different widths {widths}")
    return widths[0] if widths else 0


def chained(owner: str, transforms: Sequence[Transform]) -> list[Shape]:
    """The sizes of events before the first of transforms and behind each, as far as they are known.

    Raises:
        ShapeError: One returns events that the next does not take.
    """
    for number, (first, second) in enumerate(pairwise(transforms), 1):
        if first.latent_dim != second.event_dim:
            raise ShapeError(
                f"{owner}: part {number}, {type(first).__name__}, returns events of {first.latent_dim} dimension(s), "
                f"and part {number + 1}, {type(second).__name__}, takes events of {second.event_dim}"
            )
    sizes: list[Shape] = [(None,) * transforms[0].event_dim]
    for number, transform in enumerate(transforms, 1):
        try:
            sizes.append(transform.forward_shape(sizes[-1]))
        except ShapeError as error:
            before = f", which part {number - 1}, {type(transforms[number - 2]).__name__}, returns" * (number > 1)
            raise ShapeError(f"{owner}: part {number}, {error}{before}") from None
    return sizes
