"""Dense layers, and those whose operator norm cannot exceed a bound."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowplug._arguments import require_bools, require_dtype, require_ints, require_positive
from flowplug._errors import ShapeError
from flowplug.branch import LipschitzBound, rule_for
from flowplug.lipschitz.layers._layer import Layer, LipschitzLayer
from flowplug.lipschitz.norms import InfNorm, NetworkNorm, OperatorNorm


class Linear(Layer, nn.Linear):
    """A dense layer as a `Layer`, of any norm."""

    @property
    def width(self) -> int:
        """Number of outputs."""
        return self.out_features

    def affine(self, x: Tensor, weight: Tensor, shift: Tensor | None) -> Tensor:
        """The map of rows ``x: (*batch, in)`` with this weight and a shift ``(out,)`` or, row by row, ``(B, out)``."""
        if shift is None or shift.dim() == 1:
            return functional.linear(x, weight, shift)
        return functional.linear(x, weight) + shift


class LipschitzLinear(LipschitzLayer, Linear):
    r"""A dense layer :math:`y = \hat W x + b` with :math:`|\hat W| \le` ``bound`` at every forward.

    :math:`\hat W` is a function of the parameters: no update calls, and compatible with ``state_dict``, deepcopy,
    pickle, ``torch.func.functional_call`` and DDP. It is equal in train and eval mode but for `PowerIteration`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether to add a bias.
        bound: The largest norm allowed, a positive number.
        norm: The norm that is bounded: `InfNorm`, `OneNorm` (exact), `Gram` (certified 2-norm), `SVD`,
            `PowerIteration`, `InducedNorm` or `LearnedOrder`.
        device: Where the parameters live.
        dtype: Their dtype.

    Raises:
        LipschitzError: ``bound`` is not a positive finite number, or the norm is that of a network.
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
        name = type(self).__name__
        require_ints(name, in_features=in_features, out_features=out_features)
        require_positive(name, in_features=in_features, out_features=out_features)
        require_bools(name, bias=bias)
        require_dtype(name, dtype)
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self._limit(bound, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(*batch, in_features)`` to ``(*batch, out_features)``."""
        if x.shape[-1:] != (self.in_features,):
            raise ShapeError(f"LipschitzLinear expects inputs (*batch, {self.in_features}); got {tuple(x.shape)}")
        return self.affine(x, self.bounded_weight(), self.bias)


@rule_for(LipschitzLinear)
def _(module: LipschitzLinear) -> LipschitzBound:
    return module.certify(module.bounded_weight())


def dense_layer(inputs: int, outputs: int, bound: float, norm: OperatorNorm | NetworkNorm) -> Layer:
    """A layer within ``bound``, or one that is left to the norm of its network."""
    if isinstance(norm, OperatorNorm):
        return LipschitzLinear(inputs, outputs, bound=bound, norm=norm)
    layer = Linear(inputs, outputs)
    norm.initialize_(layer.weight)
    return layer
