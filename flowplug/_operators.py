"""What the compiler leaves to Python: operators of flowplug's own, for what looks at values or is left to chance.

A compiled graph holds tensors and numbers. An operator therefore gets the number of a transform, and the values of its
branch, which need not be those that the transform itself holds.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

Result = TypeVar("Result")

_owners: WeakValueDictionary[int, object] = WeakValueDictionary()
_numbers = itertools.count()


def number_of(owner: object) -> int:
    """A new number, by which operators find the owner."""
    number = next(_numbers)
    _owners[number] = owner
    return number


def owner_of(number: int) -> Any:  # noqa: ANN401
    """The owner of that number."""
    return _owners[number]


def values_of(g: nn.Module) -> list[Tensor]:
    """What `with_values` takes, without a graph."""
    return [*(parameter.detach() for parameter in g.parameters()), *(buffer.detach() for buffer in g.buffers())]


def with_values(g: nn.Module, values: Sequence[Tensor], function: Callable[[nn.Module], Result]) -> Result:
    """What the function makes of g with these values of its parameters and buffers."""
    names = [name for name, _ in (*g.named_parameters(), *g.named_buffers())]
    own = (*g.parameters(), *g.buffers())
    if all(value.data_ptr() == mine.data_ptr() for value, mine in zip(values, own, strict=True)):
        return function(g)
    named = {f"g.{name}": value for name, value in zip(names, values, strict=True)}
    found: Result = torch.func.functional_call(_With(g), named, (function,))
    return found


class _With(nn.Module):
    def __init__(self, g: nn.Module) -> None:
        super().__init__()
        self.g = g

    def forward(self, function: Callable[[nn.Module], Result]) -> Result:
        return function(self.g)


def define(name: str, schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes an operator of a function: not to be merged with a like one, repeated, or recorded in a CUDA graph."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        qualified = f"flowplug::{name}"
        unsafe = getattr(torch.Tag, "cudagraph_unsafe", None)  # torch 2.8
        tags = [torch.Tag.nondeterministic_seeded] + ([] if unsafe is None else [unsafe])
        torch.library.define(qualified, schema, tags=tags)
        torch.library.impl(qualified, "CompositeExplicitAutograd")(function)
        torch.library.register_fake(qualified)(fake)
        operator: Callable[..., Any] = getattr(torch.ops.flowplug, name)
        return operator

    return decorate
