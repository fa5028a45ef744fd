"""The spectral norm by power iteration, warm-started from the last step of training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowplug._arguments import require_ints, require_numbers
from flowplug._operators import define
from flowplug._precision import full_precision
from flowplug.lipschitz.norms._operator_norm import OperatorNorm
from flowplug.lipschitz.norms._spectral import select, symbol
from flowplug.lipschitz.norms._svd import SVD


@dataclass(frozen=True)
class PowerIteration(OperatorNorm):
    r"""The spectral norm by power iteration, as published: adaptive, warm-started, and approached from below.

    .. math:: v \leftarrow W^T u / |W^T u|, \quad u \leftarrow W v / |W v|, \quad |W|_2 \approx u^T W v

    After k iterations the relative error is at most about :math:`\log(n) / 2k`, whatever the singular values, and the
    last change of the order of its square: the iteration stops at a change of ``(tol / 2)**2``. A layer keeps u in a
    buffer, which passes in train mode with gradients enabled refresh; all others start from it and leave it alone.
    The largest column of the weight is a second start, as a step may bring up a direction the buffer knows nothing of.

    A weight may exceed its bound by up to ``tol``, so that where invertibility matters a bound close to 1 may be
    refused: the certificate, here `SVD`, measures the weight in use. `Gram` needs no such care. Reads one number from
    the device per iteration.

    In a training that enlarges the Jacobian, a layer stays within ``tol`` (docs/benchmarks.md, "Power iteration under
    attack").

    Reference: Gouk, Frank, Pfahringer, Cree, "Regularisation of neural networks by enforcing Lipschitz continuity",
    Machine Learning 110, 2021; Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling",
    NeurIPS 2019, appendix E, for the adaptive number of iterations.

    Args:
        tol: Relative accuracy, positive.
        max_iterations: Largest number of iterations, at least 1; a training step may well stop there and go on from
            there in the next.

    Raises:
        ValueError: ``tol`` is not positive or ``max_iterations`` is below 1.

    Example:
        >>> layer = LipschitzLinear(3, 4, bound=0.9, norm=PowerIteration())
        >>> list(layer.state_dict())
        ['weight', 'bias', 'norm.u']
    """

    tol: float = 5e-3
    max_iterations: int = 500

    def orders(self) -> tuple[float, float]:
        """From 2 to 2."""
        return 2.0, 2.0

    def __post_init__(self) -> None:
        require_numbers("PowerIteration", tol=self.tol)
        require_ints("PowerIteration", max_iterations=self.max_iterations)
        if not self.tol > 0:
            raise ValueError(f"PowerIteration(tol=...) must be positive; got {self.tol}")
        if self.max_iterations < 1:
            raise ValueError(f"PowerIteration(max_iterations=...) must be at least 1; got {self.max_iterations}")

    def measure(self, weight: Tensor) -> Tensor:
        """The certificate, by `SVD`."""
        return SVD().measure(weight)

    def project(self, weight: Tensor, bound: float) -> Tensor:
        """Scales the whole weight down if the norm found from its largest column exceeds ``bound``."""
        return self.scale(weight, bound, None)[0]

    def attach(self, weight: Tensor) -> WarmPowerIteration:
        """A module that keeps u, one per frequency of a convolution."""
        return WarmPowerIteration(self, symbol(weight.detach())[0])

    def scale(self, weight: Tensor, bound: float, start: Tensor | None) -> tuple[Tensor, Tensor]:
        """The projected weight, and the ``u: (F, out)`` found from the largest columns and the ``start: (F, out)``."""
        with full_precision(weight):
            stack, slack = symbol(weight)
            # At scale 1, for squares of tiny or huge weights under- or overflow.
            scale = stack.detach().abs().amax().clamp(min=torch.finfo(stack.dtype).tiny)
            stack = stack / scale
            u, v, top = self._iterate(stack.detach(), start)
            norm = slack * scale * (select(u, top).conj() @ (select(stack, top) @ select(v, top))).real
        return weight * (bound / norm.clamp(min=bound)), u

    def _iterate(self, stack: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Singular vectors ``u: (F, out)`` and ``v: (F, in)``, and the frequency of the largest norm."""
        iterate = _iterate_apart if torch.compiler.is_compiling() else _iterate
        found: tuple[Tensor, Tensor, Tensor] = iterate(stack, start, self.tol, self.max_iterations)
        return found


class WarmPowerIteration(OperatorNorm, nn.Module):
    """`PowerIteration` for one layer, with the vectors it starts from.

    Attributes:
        u: ``(1, out)`` for a matrix, ``(F, out, 2)`` for a convolution: real and imaginary part apart, as casting a
            module to another dtype would drop the latter.
    """

    u: Tensor

    def __init__(self, settings: PowerIteration, stack: Tensor) -> None:
        super().__init__()
        self.settings = settings
        start = torch.randn_like(stack[..., 0])
        self.register_buffer("u", torch.view_as_real(start) if start.is_complex() else start)

    def orders(self) -> tuple[float, float]:
        """From 2 to 2."""
        return self.settings.orders()

    def measure(self, weight: Tensor) -> Tensor:
        """The certificate, by `SVD`."""
        return self.settings.measure(weight)

    def project(self, weight: Tensor, bound: float) -> Tensor:
        """Scales the whole weight down if the norm found exceeds ``bound``."""
        start = self.u.to(torch.promote_types(self.u.dtype, torch.float32))  # complex numbers have no bfloat16
        projected, end = self.settings.scale(weight, bound, torch.view_as_complex(start) if start.dim() == 3 else start)
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.u.copy_(torch.view_as_real(end) if end.is_complex() else end)
        return projected

    def extra_repr(self) -> str:
        """The settings."""
        return str(self.settings)


def _unit(x: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(x, dim=-2, keepdim=True)
    return x / size.clamp(min=torch.finfo(x.dtype).tiny)


@torch.no_grad()
def _iterate(stack: Tensor, start: Tensor | None, tol: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    largest = torch.linalg.vector_norm(stack, dim=-2, keepdim=True).argmax(-1, keepdim=True)
    u = stack.take_along_dim(largest, dim=-1)
    if start is not None:
        u = torch.cat([start.unsqueeze(-1), u], dim=-1)
    found = stack.new_zeros((), dtype=u.real.dtype)
    for _ in range(most):
        v = _unit(stack.mH @ u)
        product = stack @ v
        # A weight of zeros leaves the start as it is, for the next step.
        norms = torch.linalg.vector_norm(product, dim=-2, keepdim=True)
        u = torch.where(norms > 0, _unit(product), u)
        last, found = found, norms.amax((0, 1))
        if not bool(((found - last).abs() > (tol / 2) ** 2 * found).any()):
            break
    best = norms.argmax(-1, keepdim=True)
    u, v = (x.take_along_dim(best, dim=-1).squeeze(-1).contiguous() for x in (u, v))
    return u, v, norms.amax((1, 2)).argmax()


def _like_vectors(stack: Tensor, start: Tensor | None, tol: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    del start, tol, most
    frequencies, outputs, inputs = stack.shape
    index = stack.new_empty((), dtype=torch.int64)
    return stack.new_empty((frequencies, outputs)), stack.new_empty((frequencies, inputs)), index


# The number of iterations follows from values, which a graph does not know.
_iterate_apart = define(
    "power_iteration",
    "(Tensor stack, Tensor? start, float tol, int most) -> (Tensor, Tensor, Tensor)",
    _like_vectors,
)(_iterate)
