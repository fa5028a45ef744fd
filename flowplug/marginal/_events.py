"""Which entries of an event have a distribution of their own, and which share one."""

from collections.abc import Sequence

from flowplug._arguments import as_shape, require_ints, require_positive, require_shape
from flowplug._errors import ShapeError


def event_of(owner: str, features: int | Sequence[int], event_dim: int | None) -> tuple[tuple[int, ...], int]:
    """The leading sizes of an event and how many dimensions it has, checked.

    Args:
        owner: Whose arguments they are.
        features: The width, or the sizes.
        event_dim: How many dimensions an event has; ``None`` for as many as there are sizes.

    Raises:
        ShapeError: A size is below 1, there is none, or ``event_dim`` is below their number.
    """
    require_shape(owner, features=features)
    require_positive(owner, features=features)
    sizes = as_shape(features)
    dims = len(sizes) if event_dim is None else event_dim
    require_ints(owner, event_dim=dims)
    if not sizes or dims < len(sizes):
        raise ShapeError(f"{owner} needs event_dim of at least the sizes in features={sizes}, one or more; got {dims}")
    return sizes, dims
