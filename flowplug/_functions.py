"""Functions with derivatives of their own, under torch.func and, at less cost, outside it."""

from __future__ import annotations

from typing import Any

import torch

from flowplug._reading import transformed


class Function(torch.autograd.Function):
    """A function of which subclasses give ``forward`` and ``setup_context``; `run` applies it.

    For the sake of torch.func, ``apply`` of such a function binds the signature at every call, which takes a good part
    of a small step: outside torch.func a twin with both in one does without. `torch.compile` follows none that has
    derivatives in forward mode: its twin has none.
    """

    _twins: tuple[type[Function], type[Function]] | None

    def __init_subclass__(cls, **keywords: Any) -> None:  # noqa: ANN401
        super().__init_subclass__(**keywords)
        if "_twins" in vars(cls):
            return

        def forward(ctx: Any, *operands: Any) -> Any:  # noqa: ANN401
            output = cls.forward(*operands)
            cls.setup_context(ctx, operands, output)
            return output

        base = torch.autograd.Function
        plain = {"_twins": None, "forward": staticmethod(forward), "setup_context": staticmethod(base.setup_context)}
        traced = {**plain, "jvp": staticmethod(base.jvp), "generate_vmap_rule": False}
        cls._twins = (type(f"Plain{cls.__name__}", (cls,), plain), type(f"Traced{cls.__name__}", (cls,), traced))

    @classmethod
    def run(cls, *operands: Any) -> Any:  # noqa: ANN401
        """What ``forward`` gives, with the derivatives of this function."""
        function: type[Function] = cls
        if cls._twins is not None and not transformed():
            function = cls._twins[torch.compiler.is_compiling()]
        return function.apply(*operands)  # type: ignore[no-untyped-call]
