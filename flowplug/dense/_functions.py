"""Functions with derivatives of their own, under torch.func and, at less cost, outside it."""

from __future__ import annotations

from typing import Any

import torch


def under_torch_func() -> bool:
    """Whether vmap, grad or another transform of torch.func is at work, where tensors may be more than they seem."""
    return torch._C._are_functorch_transforms_active()


class Function(torch.autograd.Function):
    """A function of which subclasses give ``forward`` and ``setup_context``; `run` applies it.

    For the sake of torch.func, ``apply`` of such a function binds the signature at every call, which takes a good part
    of a small step: outside torch.func a twin with both in one does without.
    """

    plain: type[Function] | None

    def __init_subclass__(cls, **keywords: Any) -> None:  # noqa: ANN401
        super().__init_subclass__(**keywords)
        if "plain" in vars(cls):
            return

        def forward(ctx: Any, *operands: Any) -> Any:  # noqa: ANN401
            output = cls.forward(*operands)
            cls.setup_context(ctx, operands, output)
            return output

        setup = torch.autograd.Function.setup_context
        parts = {"plain": None, "forward": staticmethod(forward), "setup_context": staticmethod(setup)}
        cls.plain = type(f"Plain{cls.__name__}", (cls,), parts)

    @classmethod
    def run(cls, *operands: Any) -> Any:  # noqa: ANN401
        """What ``forward`` gives, with the derivatives of this function."""
        function = cls if under_torch_func() or cls.plain is None else cls.plain
        return function.apply(*operands)  # type: ignore[no-untyped-call]
