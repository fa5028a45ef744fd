"""Values whose derivative is given, and is right once: a second one is refused where it is taken, and not before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowplug._errors import SecondDerivativeError
from flowplug._functions import Function


def with_derivative(value: Tensor, product: Tensor, message: str, *sources: Tensor) -> Tensor:
    """The ``value``, with the derivatives of ``product`` in its place, which may not be differentiated again.

    Args:
        value: What is returned, without a graph.
        product: Of the same shape; its graph leads to the derivative wanted.
        message: What the error says.
        sources: What the derivative depends on in ways that its graph does not show.

    Raises:
        SecondDerivativeError: When a derivative is differentiated by what the sources depend on, in reverse or forward
            mode.
    """
    # The compiler follows classes that it finds by name, and no derivatives in forward mode.
    function = _Traced.apply if torch.compiler.is_compiling() else _WithDerivative.run
    result: Tensor = function(value.detach(), product, message, *sources)
    return result


def once(value: Tensor, message: str, *sources: Tensor) -> Tensor:
    """The ``value``, without a graph but one that refuses to be differentiated by what the sources depend on.

    Raises:
        SecondDerivativeError: When it is.
    """
    zero: Tensor = _Refusal.apply(message, *sources)  # type: ignore[no-untyped-call]
    return value + zero.to(value.dtype)


class _WithDerivative(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, product: Tensor, message: str, *sources: Tensor) -> Tensor:
        return value.clone()  # which hosts may write on

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
        _, product, ctx.message, *sources = inputs
        ctx.save_for_backward(product, *sources)
        ctx.save_for_forward(product, *sources)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        _, *sources = ctx.saved_tensors
        # A graph is built: what it leads to would take the sources for constants.
        grad = once(grads[0], ctx.message, *sources) if torch.is_grad_enabled() else grads[0]
        return None, grad, None, *(None for _ in sources)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:  # noqa: ANN401
        product, *sources = ctx.saved_tensors
        by_product = torch.zeros_like(product) if tangents[1] is None else tangents[1]
        return once(by_product, ctx.message, *sources)


class _Traced(_WithDerivative):
    jvp = staticmethod(torch.autograd.Function.jvp)


class _Refusal(torch.autograd.Function):
    """Zero, until it is differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(message: str, *sources: Tensor) -> Tensor:
        return sources[0].new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
        ctx.message = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:  # noqa: ANN401
        raise SecondDerivativeError(ctx.message)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:  # noqa: ANN401
        raise SecondDerivativeError(ctx.message)
