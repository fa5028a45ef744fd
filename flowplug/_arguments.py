"""Checks of the kind of arguments, before anything is made of them; their ranges are checked where they matter."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import TypeGuard

import torch
from torch import Tensor, nn

from flowplug._errors import ShapeError


def given(**values: object) -> dict[str, object]:
    """The arguments that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def require_ints(owner: str, **values: object) -> None:
    """Raises TypeError unless every value is an integer; a bool is none.

    Args:
        owner: Whose arguments they are.
        **values: The arguments, by name.
    """
    for name, value in values.items():
        if not _is_int(value):
            hint = ": one number, not a sequence" if _is_sequence(value) else ""
            raise TypeError(f"{owner}({name}=...) must be an integer; got {described(value)}{hint}")


def require_numbers(owner: str, **values: object) -> None:
    """Raises TypeError unless every value is a real number; a bool or a tensor is none."""
    for name, value in values.items():
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{owner}({name}=...) must be a number; got {described(value)}")


def require_bools(owner: str, **values: object) -> None:
    """Raises TypeError unless every value is True or False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"{owner}({name}=...) must be True or False; got {described(value)}")


def require_sizes(owner: str, **values: object) -> None:
    """Raises TypeError unless every value is a sequence of integers."""
    for name, value in values.items():
        if _is_int(value):
            raise TypeError(f"{owner}({name}=...) must be a sequence of integers; got {value}: write ({value},)")
        if not _are_ints(value):
            raise TypeError(f"{owner}({name}=...) must be a sequence of integers; got {described(value)}")


def require_shape(owner: str, **values: object) -> None:
    """Raises TypeError unless every value is an integer or a sequence of integers."""
    for name, value in values.items():
        if not (_is_int(value) or _are_ints(value)):
            raise TypeError(f"{owner}({name}=...) must be an integer or a sequence of them; got {described(value)}")


def as_shape(sizes: int | Sequence[int]) -> tuple[int, ...]:
    """One size or several, as a tuple."""
    return tuple(map(int, sizes)) if isinstance(sizes, Sequence) else (int(sizes),)


def require_positive(owner: str, **sizes: int | Sequence[int]) -> None:
    """Raises ShapeError unless every size is at least 1."""
    if any(size < 1 for value in sizes.values() for size in as_shape(value)):
        raise ShapeError(f"{owner} needs positive sizes; got {', '.join(f'{k}={v}' for k, v in sizes.items())}")


def require_dtype(owner: str, dtype: object) -> None:
    """Raises TypeError unless this is a real floating-point dtype, or None."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"{owner}(dtype=...) must be a floating-point torch.dtype or None; got {described(dtype)}")


def require_instance(owner: str, name: str, value: object, kind: type, such_as: str) -> None:
    """Raises TypeError unless the value is an instance of the class, of which an example is named."""
    if not isinstance(value, kind):
        raise TypeError(f"{owner}({name}=...) must be a {kind.__name__}, such as {such_as}; got {described(value)}")


def require_part(owner: str, name: str, value: object, method: str, such_as: str) -> None:
    """Raises TypeError unless the value is an object with this method, as a protocol asks for."""
    if isinstance(value, type) or not callable(getattr(value, method, None)):
        raise TypeError(f"{owner}({name}=...) must be {such_as}; got {described(value)}")


def _is_int(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_sequence(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _are_ints(value: object) -> bool:
    return _is_sequence(value) and all(map(_is_int, value))


def described(value: object) -> str:
    """What a value is, in a few words."""
    if isinstance(value, type):
        return f"the class {value.__name__} itself: call it"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, nn.Module):
        return f"the module {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 80 else f"an object of class {type(value).__name__}"
