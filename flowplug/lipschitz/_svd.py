"""The spectral norm of dense layers and convolutions, as the largest singular value."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flowplug.lipschitz._norms import OperatorNorm
from flowplug.lipschitz._spectral import is_wide, select, smaller_gram, symbol


class _LargestSingularValue(torch.autograd.Function):
    """That of one matrix: its square is an eigenvalue, and one vector, for the gradient, is found from it.

    A decomposition would find all vectors.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale = weight.abs().amax().clamp(min=torch.finfo(weight.dtype).tiny)
        weight = weight / scale
        gram = smaller_gram(weight)
        count, eps = len(gram), torch.finfo(weight.dtype).eps
        value = torch.linalg.eigvalsh(gram)[-1]
        # Inverse iteration gains a factor gap / shift in every step. Scaled weights have norms of at least 1, or are 0.
        shift = (value * (1 + count * eps)).clamp(min=1)
        lu, pivots, _ = torch.linalg.lu_factor_ex(gram - shift * torch.eye(count, dtype=gram.dtype, device=gram.device))
        # Any vector but one orthogonal to the one sought, which is likely to have zeros, constants or symmetry.
        vector = torch.arange(1, count + 1, device=gram.device).to(gram.dtype).sin().unsqueeze(-1)
        for _ in range(3):
            vector = torch.linalg.lu_solve(lu, pivots, vector)
            vector = vector / torch.linalg.vector_norm(vector)
        other = weight.mH @ vector if is_wide(weight) else weight @ vector
        other = other / torch.linalg.vector_norm(other).clamp(min=eps)
        u, v = (vector, other) if is_wide(weight) else (other, vector)
        return scale * value.clamp(min=0).sqrt(), u, v

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
        del inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Tensor | None:  # noqa: ANN401
        u, v = ctx.saved_tensors
        return None if grads[0] is None else grads[0] * (u @ v.mH)


@dataclass(frozen=True)
class SVD(OperatorNorm):
    r"""The spectral norm by singular values: exact for dense layers, and for convolutions up to the grid's factor.

    .. math:: |W|_2 = \sigma_{\max}(W) = \sqrt{\lambda_{\max}(W^T W)}, \qquad \nabla |W|_2 = u v^T

    Differentiable once. On CPU cheaper than `Gram` from a width of about 256, where its docstring has the figures.

    Reference: Golub, Van Loan, "Matrix Computations", 4th edition, 2013, section 8.2, for inverse iteration.

    Example:
        >>> SVD().measure(torch.eye(3))
        tensor(1.)
    """

    def orders(self) -> tuple[float, float]:
        """From 2 to 2."""
        return 2.0, 2.0

    def measure(self, weight: Tensor) -> Tensor:
        """The largest singular value, of all frequencies."""
        stack, slack = symbol(weight)
        if len(stack) == 1:
            return self._value(stack[0])
        scale = stack.detach().abs().amax().clamp(min=torch.finfo(stack.dtype).tiny)
        top = torch.linalg.eigvalsh(smaller_gram(stack.detach() / scale))[..., -1].argmax()
        return slack * self._value(select(stack, top))

    def _value(self, matrix: Tensor) -> Tensor:
        value: Tensor = _LargestSingularValue.apply(matrix)[0]  # type: ignore[no-untyped-call]
        return value
