"""Dense layers whose operator norm cannot exceed a bound."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowplug._errors import LipschitzError, ShapeError
from flowplug.lipschitz._bound import LipschitzBound, lipschitz_bound
from flowplug.lipschitz._norms import InfNorm, OperatorNorm


class LipschitzLinear(nn.Linear):
    r"""A dense layer :math:`y = \hat W x + b` with :math:`|\hat W| \le` ``bound`` at every forward.

    :math:`\hat W` is a pure function of the parameter ``weight``: no buffers, no update calls, equal in train and eval
    mode, and compatible with ``state_dict``, deepcopy, pickle, ``torch.func.functional_call`` and DDP.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether to add a bias.
        bound: The largest norm allowed, a positive number.
        norm: The norm that is bounded, `InfNorm` (exact) or `Gram` (certified 2-norm).
        device: Where the parameters live.
        dtype: Their dtype.

    Raises:
        LipschitzError: ``bound`` is not a positive finite number.
        ShapeError: The input's last dimension is not ``in_features``.

    Example:
        >>> layer = LipschitzLinear(3, 4, bound=0.9)
        >>> layer(torch.randn(5, 3)).shape
        torch.Size([5, 4])
        >>> bool(lipschitz_bound(layer).value < 0.9001)
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        bound: float = 0.97,
        norm: OperatorNorm = InfNorm(),  # noqa: B008 -- frozen and stateless
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not (bound > 0 and math.isfinite(bound)):
            raise LipschitzError(f"LipschitzLinear(bound=...) must be a positive finite number; got {bound}")
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.bound, self.norm = bound, norm
        norm.initialize_(self.weight)

    def bounded_weight(self) -> Tensor:
        """The weight in use, ``(out_features, in_features)``."""
        return self.norm.project(self.weight, self.bound)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(*batch, in_features)`` to ``(*batch, out_features)``."""
        if x.shape[-1:] != (self.in_features,):
            raise ShapeError(f"LipschitzLinear expects inputs (*batch, {self.in_features}); got {tuple(x.shape)}")
        return functional.linear(x, self.bounded_weight(), self.bias)

    def extra_repr(self) -> str:
        """Adds the bound and its norm to torch's description."""
        return f"{super().extra_repr()}, bound={self.bound}, norm={self.norm}"


@lipschitz_bound.register
def _(module: LipschitzLinear) -> LipschitzBound:
    return LipschitzBound(module.norm.measure(module.bounded_weight()), module.norm.order)
