"""The affine map of rows, its inverse and its log-det, as functions that autograd and torch.func differentiate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowplug import _derivatives
from flowplug._factors import Factors
from flowplug._functions import Function
from flowplug._precision import at_least_single, full_precision, in_dtype
from flowplug.dense._gradients import Affine, DenseGradient


class AffineMap(Function):
    """``(W x + b, log|det W|)`` of rows; in ``grad`` of W and b, the direction that ``gradient`` names.

    What depends on the values of W is computed here, where torch.func has unwrapped it.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, logabsdet: Callable[[Tensor], Tensor], gradient: DenseGradient
    ) -> tuple[Tensor, Tensor]:
        """From ``(B, D)``: ``(B, D)`` and ``(B,)``."""
        del gradient
        # Autocast lowers it; the compiler of torch 2.11 drops the gradient of a result that a cast leaves as it is.
        y = in_dtype(torch.addmm(bias, x, weight.T), weight.dtype)
        return y, logabsdet(weight).to(weight.dtype).expand(x.shape[0]).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
        """Keeps what the direction is made of, and the products' precision."""
        x, weight, bias, _, ctx.gradient = inputs
        kind = x.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, bias, x, output[0])
        ctx.save_for_forward(weight, bias, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """The ordinary gradient of x, and the directions of W and b."""
        weight, bias, x, y = ctx.saved_tensors
        delta, by_ladj = grads
        # Zeros are made of what is there, so that they are batched where it is: directions are added up in place.
        if delta is None:
            if by_ladj is None:
                return None, None, None, None, None
            delta = torch.zeros_like(by_ladj)[:, None].expand_as(y)
        if by_ladj is None:
            by_ladj = torch.zeros_like(delta[:, 0])
        by_x = by_weight = by_bias = None
        kind, dtype, enabled = ctx.autocast
        with torch.autocast(kind, dtype=dtype, enabled=enabled):
            if ctx.needs_input_grad[0]:
                by_x = delta @ once(weight, weight, bias)
            if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
                inputs = (weight, bias, x, delta, by_ladj)
                with torch.no_grad():
                    by_ladj = by_ladj.sum()
                    # The directions of W and b mix the gradients of both. A frozen one has none: without x the output
                    # is b alone and W has no gradient, nor has b without b.
                    if not ctx.needs_input_grad[1]:
                        x, y, by_ladj = torch.zeros_like(x), bias.expand_as(y), torch.zeros_like(by_ladj)
                    if not ctx.needs_input_grad[2]:
                        y, bias = y - bias, torch.zeros_like(bias)
                    by_weight, by_bias = ctx.gradient(Affine(weight, bias, x, y, delta, by_ladj))
                by_weight, by_bias = once(by_weight, *inputs), once(by_bias, *inputs)
        return by_x, by_weight, by_bias, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """The ordinary derivative, by W and b too."""
        weight, bias, x = ctx.saved_tensors
        by_x, by_weight, by_bias, *_ = tangents
        steady = once(weight, weight, bias)
        y, ladj = torch.zeros_like(x), torch.zeros_like(x[:, 0])
        if by_x is not None:
            y = y + by_x @ steady.T
        if by_weight is not None:
            y = y + x @ by_weight.T
            quotient = torch.linalg.solve(at_least_single(steady), at_least_single(by_weight))
            ladj = ladj + quotient.diagonal().sum().to(weight.dtype)
        return y if by_bias is None else y + by_bias, ladj

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> tuple[Any, Any]:  # noqa: ANN401
        """Rows of one W at once, and one W after the other."""
        return over_matrices(AffineMap, info, in_dims, operands, matrices=2)


class _Traced(AffineMap):
    """The same for the compiler, which knows no derivatives in forward mode, and takes no function for an argument."""

    jvp = staticmethod(torch.autograd.Function.jvp)

    @staticmethod
    def forward(  # type: ignore[override]
        x: Tensor, weight: Tensor, bias: Tensor, logabsdet: Tensor, gradient: DenseGradient
    ) -> tuple[Tensor, Tensor]:
        """From ``(B, D)``: ``(B, D)`` and ``(B,)``."""
        return AffineMap.forward(x, weight, bias, lambda _: logabsdet, gradient)


def affine(
    x: Tensor, weight: Tensor, bias: Tensor, logabsdet: Callable[[Tensor], Tensor], gradient: DenseGradient
) -> tuple[Tensor, Tensor]:
    """``(W x + b, log|det W|)``, ``(B, D)`` and ``(B,)``, with the directions of W and b for gradients."""
    found: tuple[Tensor, Tensor]
    if torch.compiler.is_compiling():  # which follows classes that it finds by name
        found = _Traced.apply(x, weight, bias, logabsdet(weight.detach()), gradient)  # type: ignore[no-untyped-call]
    else:
        found = AffineMap.run(x, weight, bias, logabsdet, gradient)
    return found


class Solution(Function):
    """The solutions of ``W x = r``, or of ``W^T x = r``, from the factors of W; differentiable as often as one likes.

    Its backward pass is outside autocast as well, wherever it is called.
    """

    @staticmethod
    def forward(rows: Tensor, weight: Tensor, factors: Callable[[Tensor], Factors], adjoint: bool) -> Tensor:  # noqa: FBT001
        """``(B, D)``."""
        return factors(weight).solve(rows, adjoint=adjoint)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
        """Keeps W and x."""
        _, weight, ctx.factors, ctx.adjoint = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, output)
        ctx.save_for_forward(weight, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """The ordinary gradients."""
        weight, x = ctx.saved_tensors
        if grads[0] is None:
            return None, None, None, None
        with full_precision(weight):
            by_rows = solve(grads[0], weight, ctx.factors, adjoint=not ctx.adjoint)
            by_weight = None
            if ctx.needs_input_grad[1]:
                by_weight = -(x.T @ by_rows) if ctx.adjoint else -(by_rows.T @ x)
        return by_rows, by_weight, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:  # noqa: ANN401
        """The derivative."""
        weight, x = ctx.saved_tensors
        by_rows, by_weight, *_ = tangents
        rows = torch.zeros_like(x) if by_rows is None else by_rows
        with full_precision(weight):
            if by_weight is not None:
                rows = rows - x @ (by_weight if ctx.adjoint else by_weight.T)
            return solve(rows, weight, ctx.factors, adjoint=ctx.adjoint)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> tuple[Any, Any]:  # noqa: ANN401
        """Rows of one W at once, and one W after the other."""
        return over_matrices(Solution, info, in_dims, operands, matrices=1)


class LogAbsDet(Function):
    """log|det W| with its ordinary derivatives, from the factors of W."""

    @staticmethod
    def forward(weight: Tensor, factors: Callable[[Tensor], Factors]) -> Tensor:
        """A scalar."""
        return factors(weight).logabsdet.to(weight.dtype, copy=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
        """Keeps W."""
        del output
        weight, ctx.factors = inputs
        ctx.save_for_backward(weight)
        ctx.save_for_forward(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """``W^-T``."""
        (weight,) = ctx.saved_tensors
        identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        return grads[0] * solve(identity, weight, ctx.factors), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:  # noqa: ANN401
        """``tr(W^-1 dW)``."""
        (weight,) = ctx.saved_tensors
        return solve(tangents[0].T, weight, ctx.factors).diagonal().sum()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> tuple[Any, Any]:  # noqa: ANN401
        """One W after the other."""
        members = [LogAbsDet.run(w, operands[1]) for w in operands[0].unbind(in_dims[0])]
        del info
        return torch.stack(members), 0


def solve(rows: Tensor, weight: Tensor, factors: Callable[[Tensor], Factors], *, adjoint: bool = False) -> Tensor:
    """The rows x of ``W x = r``, or of ``W^T x = r``."""
    solution: Tensor = Solution.run(rows, weight, factors, adjoint)
    return solution


def over_matrices(
    function: type[Function],
    info: Any,  # noqa: ANN401
    in_dims: Sequence[Any],
    operands: Sequence[Any],
    *,
    matrices: int,
) -> tuple[Any, Any]:
    """A vmap of a function of rows and so many further tensors: rows joined where those are shared, else in turn."""
    rows, dims = operands[0], in_dims[1 : 1 + matrices]
    if all(dim is None for dim in dims):
        rows = rows.movedim(in_dims[0], 0)
        found = function.run(rows.flatten(0, 1), *operands[1:])
        if isinstance(found, Tensor):
            return found.reshape(*rows.shape[:2], *found.shape[1:]), 0
        return tuple(part.reshape(*rows.shape[:2], *part.shape[1:]) for part in found), 0
    found = []
    for i in range(info.batch_size):
        chosen = (part if dim is None else part.select(dim, i) for part, dim in zip(operands, in_dims, strict=True))
        found.append(function.run(*chosen))
    if isinstance(found[0], Tensor):
        return torch.stack(found), 0
    return tuple(map(torch.stack, zip(*found, strict=True))), 0


def once(value: Tensor, *inputs: Tensor, name: str = "DenseTransform") -> Tensor:
    """The value; where a graph is built, one that refuses to be differentiated by any of the inputs.

    Else autograd would add ordinary gradients to relative directions, or take those for constants.
    """
    if not torch.is_grad_enabled():
        return value
    return _derivatives.once(
        value.detach(),
        f"{name} is differentiable once in W and b: the relative gradient is no gradient that could be differentiated; "
        "differentiate twice by inputs only, or call autograd without create_graph=True",
        *inputs,
    )
