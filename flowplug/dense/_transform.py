"""The affine map with an unconstrained square matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowplug._arguments import require_ints, require_part, require_positive
from flowplug._errors import ShapeError, SingularMatrixError
from flowplug._factors import Factorization, Factors, logabsdet_of
from flowplug._moments import nonzero, standardise, whitener
from flowplug._precision import at_least_single, full_precision
from flowplug._reading import known
from flowplug._transform import Transform
from flowplug.dense._activations import SmoothLeakyReLU
from flowplug.dense._affine import LogAbsDet, affine, solve
from flowplug.dense._arguments import GRADIENTS, elementwise, own, started
from flowplug.dense._gradients import DenseGradient, Relative
from flowplug.dense._values import DenseValue, ExactValue, Kept


class DenseTransform(Transform):
    r"""A fully connected layer with a square matrix and an invertible activation, trained by the relative gradient.

    .. math:: y = \sigma(W x + b), \qquad \mathrm{ladj} = \log|\det W| + \sum_i \log \sigma'((W x + b)_i)

    The backward pass leaves the direction that ``gradient`` names in ``grad`` of W and b, for whatever loss and
    per-sample weights, and the ordinary gradient in that of x. With the default it costs vector-matrix products only,
    :math:`O(D^2)` per sample. It is linear in the batch: gradient accumulation and the average over the ranks of
    DistributedDataParallel are those of the whole batch. Beside a frozen W or b, the other follows its own gradient
    alone. Through `inverse`, and in forward mode, derivatives are the ordinary ones.

    Reference: Gresele, Fissore, Javaloy, Schölkopf, Hyvärinen, "Relative gradient optimization of the Jacobian term in
    unsupervised deep learning", NeurIPS 2020.

    Args:
        features: Width D of the events.
        activation: An element-wise transform such as `SmoothLeakyReLU` or `TanhLinear`, copied if it has no parameters;
            ``None`` for the bare map.
        bias: Whether there is a b.
        gradient: `Relative`, `TransposedRelative` or `Euclidean`.
        value: `ExactValue` or `Deferred`.
        init: Fills W in place: `ScaledIdentity`, ...; ``None`` for `torch.nn.init.orthogonal_`. `whiten` starts from
            data instead.

    Raises:
        ShapeError: ``features`` is below 1, the activation is not for vectors of that width,
            or an input has another.
        ContextError: The activation wants a context.
        TypeError: ``features`` is no integer, the activation is no transform, or a strategy is a class or none.
        SingularMatrixError: W is singular to working precision.
        SecondDerivativeError: A derivative is differentiated by W or b, as in score matching, or one by W or b by
            anything; one by x may be differentiated by x.

    Example:
        >>> flow = ComposedTransform(DenseTransform(2), DenseTransform(2, activation=None))
        >>> y, ladj = flow(torch.randn(5, 2))
    """

    event_dim = 1

    def __init__(
        self,
        features: int,
        *,
        activation: Transform | None = SmoothLeakyReLU(0.3),  # noqa: B008 -- is copied
        bias: bool = True,
        gradient: DenseGradient = Relative(),  # noqa: B008 -- frozen
        value: DenseValue = ExactValue(),  # noqa: B008 -- frozen
        init: Callable[[Tensor], object] | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        require_ints(name, features=features)
        require_positive(name, features=features)
        elementwise(name, activation, features)
        require_part(name, "gradient", gradient, "precondition", GRADIENTS)
        require_part(name, "value", value, "due", "how often log|det W| is found, such as ExactValue()")
        self.event_shape = (features, *[None] * (self.event_dim - 1))
        self.weight = nn.Parameter(started(name, init, features))
        self.bias = nn.Parameter(torch.zeros(features)) if bias else None
        self.activation, self.gradient, self.value = own(activation), gradient, value
        self._factorization = Factorization()
        self._kept: Kept | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start without a deferred value."""
        return {**self.__dict__, "_kept": None}

    @torch.no_grad()
    def whiten(self, x: Tensor, shrinkage: float | None = None) -> None:
        r"""Starts from data: sets W and b so that W x + b has mean 0 and covariance close to I over the rows of x.

        .. math:: W = (\lambda I + (1 - \lambda) R)^{-1/2} S^{-1}, \qquad b = -W \mu

        with the standard deviations S and the correlation R of the rows, in whatever units. A constant feature is
        centred and left at its scale.

        Args:
            x: Data, ``(N, D)``, or whatever else `forward` takes.
            shrinkage: The share :math:`\lambda`; ``None`` for the oracle-approximating one of `Whitening`: near 0 for
                many rows, near 1, which leaves the scales alone, where rows are too few to tell directions apart.

        Raises:
            ShapeError: The transform has no b, or fewer than two rows are given.
            ValueError: ``shrinkage`` is outside [0, 1].
            SingularMatrixError: ``shrinkage`` is 0, and some combination of features does not vary.
            FlowplugError: As in `forward`.

        Example:
            >>> transform = DenseTransform(2, activation=None)
            >>> transform.whiten(3 + torch.randn(1000, 2))
        """
        rows = at_least_single(self._vectors(self._check(x, None)[0]).to(self.weight.dtype))
        if self.bias is None or len(rows) < 2:
            raise ShapeError(
                f"whiten needs a transform with bias, and two rows or more; got bias={self.bias is not None} and "
                f"{len(rows)} rows"
            )
        if shrinkage is not None and not 0 <= shrinkage <= 1:
            raise ValueError(f"whiten(shrinkage=...) must be a share, from 0 to 1; got {shrinkage}")
        with full_precision(rows):
            mean, std, scores = standardise(rows)
            weight = whitener(scores.T @ scores / len(rows), len(rows), shrinkage) / nonzero(std)
            self.weight.copy_(weight)
            self.bias.copy_(-weight @ mean)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        rows = x.reshape(-1, x.shape[-1])
        y, ladj = affine(rows, self.weight, self._shift(), self._logabsdet, self.gradient)
        y, ladj = y.reshape(x.shape), ladj.reshape(x.shape[:-1])
        if self.activation is None:
            return y, ladj
        y, other = self.activation(y, context)
        return y, ladj + other

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        other: Tensor | float = 0.0
        if self.activation is not None:
            y, other = self.activation.inverse(y, context)
        weight = self.weight
        rows = solve(y.reshape(-1, y.shape[-1]) - self._shift(), weight, self._factors)
        logabsdet = LogAbsDet.run(weight, self._factors)
        return rows.reshape(y.shape), other - logabsdet.expand(y.shape[:-1])

    def _vectors(self, x: Tensor) -> Tensor:
        """What W multiplies, ``(N, D)``."""
        return x.reshape(-1, x.shape[-1])

    def _shift(self) -> Tensor:
        return self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias

    def _logabsdet(self, weight: Tensor) -> Tensor:
        """log|det W|, a constant; in train mode one that `value` may keep."""
        if torch.compiler.is_compiling():
            return self._finite(logabsdet_of(at_least_single(weight)))
        if not self.training:
            return self._finite(self._factorization(weight).logabsdet)
        if self._kept is not None and self._kept.serves(weight) and not self.value.due(self._kept.age):
            self._kept.age += 1
            return self._kept.value
        value = self._finite(logabsdet_of(at_least_single(weight)))
        self._kept = None if self.value.due(1) else Kept(weight, value)
        return value

    def _finite(self, logabsdet: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            message = f"the matrix of a {type(self).__name__} is singular or not finite"
            torch._assert_async(logabsdet.isfinite(), message)
        elif self.training and logabsdet.is_cuda:
            message = f"the matrix of {_name(self)} was singular or not finite in the last pass"
            self._require_later(logabsdet.isfinite(), message, SingularMatrixError)
        elif not math.isfinite(logabsdet.item()):
            raise SingularMatrixError(
                f"the matrix of {_name(self)} is singular or not finite: log|det W| = {float(logabsdet)}"
            )
        return logabsdet

    def _factors(self, weight: Tensor) -> Factors:
        """The factors of a W that can be inverted."""
        factors = self._factorization(weight)
        require_invertible(self, factors.condition)
        return factors

    def train(self, mode: bool = True) -> DenseTransform:  # noqa: FBT001, FBT002 -- as torch has it
        """Switches between training and evaluation; a deferred value does not outlast it."""
        self._kept = None
        return super().train(mode)

    def _apply(self, *args: Any, **keywords: Any) -> DenseTransform:  # noqa: ANN401
        self._kept = None
        return super()._apply(*args, **keywords)  # type: ignore[no-untyped-call,no-any-return]

    def _load_from_state_dict(self, *args: Any, **keywords: Any) -> None:  # noqa: ANN401
        self._kept = None
        super()._load_from_state_dict(*args, **keywords)

    def extra_repr(self) -> str:
        """Names width and strategies."""
        return f"{len(self.weight)}, bias={self.bias is not None}, gradient={self.gradient}, value={self.value}"


def _name(transform: Transform) -> str:
    return f"{type(transform).__name__}({transform.extra_repr()})"


def require_invertible(transform: Transform, condition: Tensor) -> None:
    """Raises SingularMatrixError where a solution has no right digit."""
    if known(condition * torch.finfo(condition.dtype).eps < 1) is False:
        raise SingularMatrixError(
            f"the matrix of {_name(transform)} is singular to working precision: its condition number is "
            f"{float(condition):.3g}"
        )
