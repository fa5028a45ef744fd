"""The exact log-det, by the dense Jacobian."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowplug._errors import CaptureError
from flowplug._noise import Noise
from flowplug._operators import define
from flowplug._precision import at_least_single
from flowplug._reading import exporting, transformed
from flowplug.branch import Branch

# Torch gives larger batches of wider matrices to MAGMA, where it has that; it waits for the GPU, and no graph holds it.
NARROW, MIDDLE, FEW = 16, 128, 16


@dataclass(frozen=True)
class ExactLogDet:
    r"""The exact log-det from the dense Jacobian of every sample.

    .. math:: \log |\det (I + J_g(x))|

    Costs D vector-Jacobian products per sample (one chain of matrix products for `LipschitzMLP`), D x D memory and
    :math:`O(D^3)` for the determinant; with the narrowest width of a `LipschitzMLP` in place of a larger D, as
    :math:`\det(I + AB) = \det(I + BA)`. Value and gradient are exact, in train and eval mode; the oracle of every test.

    Example:
        >>> transform = ResidualTransform(LipschitzMLP(2), logdet=ExactLogDet())

    Raises:
        CaptureError: A `torch.cuda.graph` is captured, and torch has the decomposition made by MAGMA.
    """

    def __call__(self, branch: Branch, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """``g(x): (B, *event)`` and the log-det ``(B,)`` in nats."""
        del noise
        y, core = branch.core(x)
        # Determinants do not come in half precision, which the model or autocast may have.
        core = at_least_single(core.to(x.dtype))
        eye = torch.eye(core.shape[-1], dtype=core.dtype, device=x.device)
        return y, _logabsdet(eye + core).to(x.dtype)


def _logabsdet(matrices: Tensor) -> Tensor:
    """log|det| of ``(B, D, D)``, ``(B,)``."""
    if torch.compiler.is_compiling():
        value: Tensor = _Traced.apply(matrices)[0]  # type: ignore[no-untyped-call]
        return value
    if _left_to_magma(matrices) and torch.cuda.is_current_stream_capturing():
        _refuse_capture(matrices)
    if not transformed():
        found: Tensor = torch.linalg.slogdet(matrices).logabsdet
        return found
    # Forward-mode derivatives of torch's slogdet are wrong to second order, and wherever vmap meets them.
    factors: Tensor = torch.linalg.lu_factor_ex(matrices)[0]
    return factors.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)


def _left_to_magma(matrices: Tensor) -> bool:
    """Whether torch may have a batch of these decomposed by MAGMA."""
    return matrices.is_cuda and matrices.shape[-1] > NARROW and torch.cuda.has_magma


def _refuse_capture(matrices: Tensor) -> None:
    if len(matrices) <= (FEW if matrices.shape[-1] <= MIDDLE else 1):
        return
    if torch.backends.cuda.preferred_linalg_library() != torch._C._LinalgBackend.Cusolver:
        raise CaptureError(
            f"the exact log-dets of {len(matrices)} rows by matrices of width {matrices.shape[-1]} > {NARROW} are "
            "found by MAGMA, which no CUDA graph can hold: call "
            'torch.backends.cuda.preferred_linalg_library("cusolver") before, or use '
            'torch.compile(mode="reduce-overhead"), which leaves this part out of the graph'
        )


def _factorize(matrices: Tensor) -> tuple[Tensor, Tensor]:
    factors, pivots, _ = torch.linalg.lu_factor_ex(matrices)
    return factors.mT.contiguous().mT, pivots


_factorize_apart = define(
    "lu_factor",
    "(Tensor matrices) -> (Tensor, Tensor)",
    lambda matrices: (torch.empty_like(matrices).mT, matrices.new_empty(matrices.shape[:-1], dtype=torch.int32)),
)(_factorize)


class _Traced(torch.autograd.Function):
    """The same for compiled graphs, in which the backward pass of torch's slogdet is wrong, and silently so.

    It transposes or not by the layout that the tracer supposes, which the code generated need not keep.
    """

    @staticmethod
    def forward(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        apart = _left_to_magma(matrices) and not exporting()
        factors, pivots = (_factorize_apart if apart else _factorize)(matrices)
        return factors.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1), factors, pivots

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:  # noqa: ANN401
        del inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401
        factors, pivots = ctx.saved_tensors
        eye = torch.eye(factors.shape[-1], dtype=factors.dtype, device=factors.device)
        found: Tensor = torch.linalg.lu_solve(factors, pivots, grads[0][:, None, None] * eye, adjoint=True)
        return found
