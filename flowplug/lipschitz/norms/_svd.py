"""The spectral norm of dense layers and convolutions, as the largest singular value."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowplug._precision import at_least_single, full_precision
from flowplug.lipschitz.norms._frequencies import grams
from flowplug.lipschitz.norms._spectral import SpectralNorm, is_wide, smaller_gram


@dataclass(frozen=True)
class SVD(SpectralNorm):
    r"""The spectral norm by singular values: exact for dense layers, and for convolutions up to the grid's factor.

    .. math:: |W|_2 = \sigma_{\max}(W) = \sqrt{\lambda_{\max}(W^T W)}, \qquad \nabla |W|_2 = u v^T

    On CPU cheaper than `Gram` from a width of about 256 (docs/benchmarks.md, "Cost of bounded dense layers").

    Reference: Golub, Van Loan, "Matrix Computations", 4th edition, 2013, section 8.2, for inverse iteration.

    Example:
        >>> SVD().measure(torch.eye(3))
        tensor(1.)
    """

    def norms(self, stack: Tensor) -> tuple[Tensor, Tensor]:
        """Square roots of eigenvalues; one vector of each, for the gradient, is found from it, instead of all."""
        scale = stack.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(stack.dtype).tiny)
        stack = stack / scale
        gram = smaller_gram(stack)
        count, eps = gram.shape[-1], torch.finfo(stack.dtype).eps
        value = torch.linalg.eigvalsh(gram)[..., -1:, None]
        # Inverse iteration gains a factor gap / shift in every step. Scaled weights have norms of at least 1, or are 0.
        shift = (value * (1 + count * eps)).clamp(min=1)
        lu, pivots, _ = torch.linalg.lu_factor_ex(gram - shift * torch.eye(count, dtype=gram.dtype, device=gram.device))
        # Any vector but one orthogonal to the one sought, which is likely to have zeros, constants or symmetry.
        start = torch.arange(1, count + 1, device=gram.device).to(gram.dtype).sin().unsqueeze(-1)
        vector = start.expand(*gram.shape[:-1], 1)
        for _ in range(3):
            vector = torch.linalg.lu_solve(lu, pivots, vector)
            vector = vector / torch.linalg.vector_norm(vector, dim=-2, keepdim=True)
        other = stack.mH @ vector if is_wide(stack) else stack @ vector
        other = other / torch.linalg.vector_norm(other, dim=-2, keepdim=True).clamp(min=eps)
        u, v = (vector, other) if is_wide(stack) else (other, vector)
        return (scale * value.clamp(min=0).sqrt())[..., 0, 0], u @ v.mH

    def differentiable(self, matrix: Tensor, gradient: Tensor) -> Tensor:
        r"""By perturbation theory, :math:`dv = (\lambda - G)^+ \, dG \, v` with :math:`G = W^T W`, and u from W v.

        Inverse iteration has no derivative in finite precision, and that of a decomposition asks for distinct singular
        values, not only for a largest one that is single.
        """
        tall = matrix.mH if is_wide(matrix) else matrix
        with full_precision(matrix):
            with torch.no_grad():
                scale = tall.abs().amax().clamp(min=torch.finfo(tall.dtype).tiny)
                values, vectors = torch.linalg.eigh(smaller_gram(tall / scale))
                gaps, top = values[-1] - values, vectors[:, -1:]
                close = gaps <= len(values) * torch.finfo(tall.dtype).eps * values[-1]
                inverse = torch.where(close, 0, 1 / torch.where(close, 1, gaps)).unsqueeze(-1)
            tall = tall / scale
            v = top + vectors @ (inverse * (vectors.mH @ (tall.mH @ (tall @ top))))
            u = tall @ v
            found: Tensor = u / torch.linalg.vector_norm(u).clamp(min=torch.finfo(tall.dtype).eps) @ v.mH
        found = found.mH if is_wide(matrix) else found
        return gradient + (found - found.detach())

    def tops(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Those of the largest eigenvalue."""
        found = []
        for weight in map(at_least_single, weights):
            scaled = grams(weight / weight.abs().amax().clamp(min=torch.finfo(weight.dtype).tiny))
            found.append(torch.linalg.eigvalsh(scaled)[..., -1].argmax())
        return found
