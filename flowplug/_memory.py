"""What follows from tensors, kept as long as their values stay the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from flowplug._precision import at_least_single, full_precision
from flowplug._reading import hidden

Result = TypeVar("Result")


class _Trace(NamedTuple):
    """What is compared of a tensor."""

    dtype: torch.dtype
    vector: Tensor | None
    image: Tensor


class Memory(Generic[Result]):
    """Keeps what was computed last; computes it again once a value of a tensor, or a setting, has changed.

    What a matrix makes of one vector without pattern tells, as for `flowplug._factors.Factorization`: any change beyond
    rounding changes it, by whatever way it was written. Copies and pickles start empty.
    """

    def __init__(self) -> None:
        self._kept: tuple[list[_Trace], object, Result] | None = None

    def __reduce__(self) -> tuple[type[Memory[Result]], tuple[()]]:
        """What is kept is not copied."""
        return Memory, ()

    def __call__(self, tensors: Sequence[Tensor], settings: object, compute: Callable[[], Result]) -> Result:
        """The result of ``compute``, which depends on these tensors and settings alone and builds no graph."""
        if any(map(hidden, tensors)):
            with torch.no_grad():
                return compute()
        kept = self._kept
        if (
            kept is not None
            and kept[1] == settings
            and len(kept[0]) == len(tensors)
            and all(map(_same, kept[0], tensors))
        ):
            return kept[2]
        # What is found in inference mode must serve outside it. The compiler does not know the keyword.
        with torch.inference_mode(False), torch.no_grad():  # noqa: FBT003
            result = compute()
            self._kept = [_trace(tensor) for tensor in tensors], settings, result
        return result


def without_pattern(count: int, like: Tensor) -> Tensor:
    """A vector ``(count,)``, which no change of a matrix but by chance takes to 0."""
    numbers = torch.arange(count, device=like.device, dtype=torch.float64)
    return numbers.square().cos().to(like.dtype)


def image(matrix: Tensor, vector: Tensor) -> Tensor:
    """The product, outside autocast."""
    with full_precision(matrix):
        return matrix @ vector


def _trace(tensor: Tensor) -> _Trace:
    single = at_least_single(tensor.detach())
    if single.dim() < 2 or not single.is_floating_point():
        return _Trace(tensor.dtype, None, single.clone())
    rows = single.flatten(1)
    vector = without_pattern(rows.shape[1], rows)
    return _Trace(tensor.dtype, vector, image(rows, vector))


def _same(trace: _Trace, tensor: Tensor) -> bool:
    if (trace.dtype, trace.image.device) != (tensor.dtype, tensor.device):
        return False
    now = at_least_single(tensor.detach())
    if trace.vector is not None:
        rows = now.flatten(1) if now.dim() > 1 else now
        if rows.shape[-1:] != trace.vector.shape:
            return False
        now = image(rows, trace.vector)
    return torch.equal(now, trace.image)
