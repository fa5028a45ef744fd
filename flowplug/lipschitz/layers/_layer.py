"""What the layers of a network are: linear maps that take their weight in use as an argument, bounded ones or not."""

from __future__ import annotations

import abc
import math

from torch import Tensor, nn

from flowplug._arguments import require_numbers
from flowplug._errors import LipschitzError
from flowplug._precision import full_precision
from flowplug.branch import LipschitzBound
from flowplug.lipschitz.norms import OperatorNorm


class Layer(nn.Module, abc.ABC):
    """A linear map plus a bias, evaluated with the weight and the shift that a network gives it.

    Attributes:
        weight: The parameter.
    """

    weight: Tensor

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Number of outputs, of a pixel for images."""

    @abc.abstractmethod
    def affine(self, x: Tensor, weight: Tensor, shift: Tensor | None) -> Tensor:
        """The map of rows ``x: (B, *in)`` with this weight and a shift ``(out,)`` or, row by row, ``(B, out)``."""


class LipschitzLayer(Layer):
    """A linear map plus a bias, whose weight in use is bounded in a norm.

    Attributes:
        weight: The parameter, unbounded.
        bound: The largest norm allowed.
        norm: The norm that is bounded.

    Example:
        >>> layer = LipschitzLinear(3, 4, bound=0.9)
        >>> isinstance(layer, LipschitzLayer), layer.bounded_weight().shape
        (True, torch.Size([4, 3]))
    """

    bound: float
    norm: OperatorNorm

    def _limit(self, bound: float, norm: OperatorNorm) -> None:
        name = type(self).__name__
        require_numbers(name, bound=bound)
        if not (bound > 0 and math.isfinite(bound)):
            raise LipschitzError(f"{name}(bound=...) must be a positive finite number; got {bound}")
        if not isinstance(norm, OperatorNorm):
            raise LipschitzError(
                f"{name}(norm=...) must be the norm of a layer, such as InfNorm() or Gram(); got {norm}"
            )
        self.bound, self.norm = bound, norm.attach(self.weight)
        norm.initialize_(self.weight)

    def bounded_weight(self) -> Tensor:
        """The weight in use, of the shape of ``weight``."""
        with full_precision(self.weight):
            return self.norm.project(self.weight, self.bound)

    def certify(self, weight: Tensor) -> LipschitzBound:
        """The bound of the layer with this weight in use."""
        return self.norm.certify(weight)._replace(limit=self.bound)

    def extra_repr(self) -> str:
        """Adds the bound and its norm to torch's description."""
        norm = "" if isinstance(self.norm, nn.Module) else f", norm={self.norm}"
        return f"{super().extra_repr()}, bound={self.bound:.6g}{norm}"
