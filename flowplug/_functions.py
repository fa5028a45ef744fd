"""Functions with derivatives of their own, under torch.func and, at less cost, outside it."""

from __future__ import annotations

from typing import Any

import torch

from flowplug._reading import transformed


class Function(torch.autograd.Function):
    """A function of which subclasses give ``forward`` and ``setup_context``; `run` applies it.

    For the sake of torch.func, ``apply`` of such a function binds the signature at every call, which takes a good part
    of a small step: outside torch.func a twin with both in one does without. `torch.compile` breaks its graph at `run`;
    it follows the ``apply`` of a class that has no derivatives in forward mode, where it finds that by name.
    """

    _plain: type[Function] | None

    def __init_subclass__(cls, **keywords: Any) -> None:  # noqa: ANN401
        super().__init_subclass__(**keywords)
        if "_plain" in vars(cls):
            return

        def forward(ctx: Any, *operands: Any) -> Any:  # noqa: ANN401
            output = cls.forward(*operands)
            cls.setup_context(ctx, operands, output)
            return output

        setup = staticmethod(torch.autograd.Function.setup_context)
        parts = {"_plain": None, "forward": staticmethod(forward), "setup_context": setup}
        cls._plain = type(f"Plain{cls.__name__}", (cls,), parts)

    @classmethod
    def run(cls, *operands: Any) -> Any:  # noqa: ANN401
        """What ``forward`` gives, with the derivatives of this function."""
        function = cls if cls._plain is None or transformed() else cls._plain
        return function.apply(*operands)  # type: ignore[no-untyped-call]
