"""The affine map with an unconstrained square matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowplug._errors import SecondDerivativeError, ShapeError, SingularMatrixError
from flowplug._moments import nonzero, standardise, whitener
from flowplug._precision import at_least_single, full_precision
from flowplug._transform import Transform
from flowplug.dense._activations import SmoothLeakyReLU
from flowplug.dense._gradients import Affine, DenseGradient, Relative
from flowplug.dense._values import DenseValue, ExactValue


class DenseTransform(Transform):
    r"""A fully connected layer with a square matrix and an invertible activation, trained by the relative gradient.

    .. math:: y = \sigma(W x + b), \qquad \mathrm{ladj} = \log|\det W| + \sum_i \log \sigma'((W x + b)_i)

    The backward pass leaves the direction that ``gradient`` names in ``grad`` of W and b, for whatever loss and
    per-sample weights, and the ordinary gradient in that of x. With the default it costs vector-matrix products only,
    :math:`O(D^2)` per sample. It is linear in the batch: gradient accumulation and the average over the ranks of
    DistributedDataParallel are those of the whole batch. Beside a frozen W or b, the other follows its own gradient
    alone. Through `inverse`, gradients are the ordinary ones.

    Reference: Gresele, Fissore, Javaloy, Schölkopf, Hyvärinen, "Relative gradient optimization of the Jacobian term in
    unsupervised deep learning", NeurIPS 2020.

    Args:
        features: Width D of the events.
        activation: An element-wise transform such as `SmoothLeakyReLU` or `TanhLinear`; ``None`` for the bare map.
        bias: Whether there is a b.
        gradient: `Relative`, `TransposedRelative` or `Euclidean`.
        value: `ExactValue` or `Deferred`.
        init: Fills W in place: `torch.nn.init.orthogonal_`, `ScaledIdentity`, ... `whiten` starts from data instead.

    Raises:
        ShapeError: ``features`` is below 1, or an input has another width.
        SingularMatrixError: W is singular to working precision.
        SecondDerivativeError: A derivative is differentiated by W or b, as in score matching; by x it may be.

    Example:
        >>> flow = ComposedTransform(DenseTransform(2), DenseTransform(2, activation=None))
        >>> y, ladj = flow(torch.randn(5, 2))
    """

    event_dim = 1

    def __init__(
        self,
        features: int,
        *,
        activation: Transform | None = SmoothLeakyReLU(0.3),  # noqa: B008 -- has no state
        bias: bool = True,
        gradient: DenseGradient = Relative(),  # noqa: B008 -- frozen
        value: DenseValue = ExactValue(),  # noqa: B008 -- frozen
        init: Callable[[Tensor], object] = nn.init.orthogonal_,
    ) -> None:
        super().__init__()
        if features < 1:
            raise ShapeError(f"{type(self).__name__} needs at least 1 feature or channel; got {features}")
        self.event_shape = (features, *[None] * (self.event_dim - 1))
        self.weight = nn.Parameter(torch.empty(features, features))
        init(self.weight)
        self.bias = nn.Parameter(torch.zeros(features)) if bias else None
        self.activation, self.gradient, self.value = activation, gradient, value
        self._logabsdet: tuple[Tensor, int] | None = None  # a value, and how many passes it has served
        self._factors: tuple[Tensor, int, Tensor, Tensor, Tensor] | None = None  # W, its version, and what follows

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start with empty caches."""
        return {**self.__dict__, "_logabsdet": None, "_factors": None}

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
        y, ladj = _AffineMap.apply(rows, self.weight, self._shift(), self._current_logabsdet(), self.gradient)  # type: ignore[no-untyped-call]
        y, ladj = y.reshape(x.shape), ladj.reshape(x.shape[:-1])
        if self.activation is None:
            return y, ladj
        y, other = self.activation(y, context)
        return y, ladj + other

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        other: Tensor | float = 0.0
        if self.activation is not None:
            y, other = self.activation.inverse(y, context)
        factors, pivots, condition = self._factorize()
        require_invertible(self, condition)
        rows = y.reshape(-1, y.shape[-1]) - self._shift()
        if torch.is_grad_enabled():
            logabsdet = torch.linalg.slogdet(self.weight).logabsdet
            rows = torch.linalg.solve(self.weight, rows.T).T
        else:
            logabsdet = factors.diagonal().abs().log().sum()
            rows = torch.linalg.lu_solve(factors, pivots, rows.T).T
        return rows.reshape(y.shape), -logabsdet.expand(y.shape[:-1]) + other

    def _vectors(self, x: Tensor) -> Tensor:
        """What W multiplies, ``(N, D)``."""
        return x.reshape(-1, x.shape[-1])

    def _shift(self) -> Tensor:
        return self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias

    @torch.no_grad()
    def _current_logabsdet(self) -> Tensor:
        if self.training and self._logabsdet is not None and not self.value.due(self._logabsdet[1]):
            served, age = self._logabsdet
            self._logabsdet = (served, age + 1)
            return served
        if self.training:
            value: Tensor = torch.linalg.slogdet(self.weight).logabsdet
        else:
            value = self._factorize()[0].diagonal().abs().log().sum()
        if not value.isfinite():
            raise SingularMatrixError(
                f"the matrix of {_name(self)} is singular or not finite: log|det W| = {float(value)}"
            )
        if self.training:
            self._logabsdet = (value, 1)
        return value

    @torch.no_grad()
    def _factorize(self) -> tuple[Tensor, Tensor, Tensor]:
        """The LU decomposition of the present W and its condition number, kept until W changes."""
        weight = self.weight
        if self._factors is None or self._factors[0] is not weight or self._factors[1] != weight._version:
            factors, pivots, _ = torch.linalg.lu_factor_ex(weight.detach())
            self._factors = (weight, weight._version, factors, pivots, _condition(weight, factors, pivots))
        return self._factors[2:]

    def extra_repr(self) -> str:
        """Names width and strategies."""
        return f"{len(self.weight)}, bias={self.bias is not None}, gradient={self.gradient}, value={self.value}"


def _name(transform: Transform) -> str:
    return f"{type(transform).__name__}({transform.extra_repr()})"


def require_invertible(transform: Transform, condition: Tensor) -> None:
    """Raises SingularMatrixError where a solution has no right digit."""
    if not condition * torch.finfo(condition.dtype).eps < 1:
        raise SingularMatrixError(
            f"the matrix of {_name(transform)} is singular to working precision: its condition number is "
            f"{float(condition):.3g}"
        )


def _condition(weight: Tensor, factors: Tensor, pivots: Tensor, steps: int = 8) -> Tensor:
    """The 2-norm condition number of W, by power iterations on W and its inverse: from below, within a small factor."""
    if not factors.diagonal().abs().amin() > 0:
        return factors.new_tensor(math.inf)
    forward = backward = torch.linspace(1, 2, len(weight), dtype=weight.dtype, device=weight.device)[:, None]
    for _ in range(steps):
        forward = functional.normalize(weight.T @ (weight @ forward), dim=0)
        backward = torch.linalg.lu_solve(factors, pivots, backward)
        backward = functional.normalize(torch.linalg.lu_solve(factors, pivots, backward, adjoint=True), dim=0)
    backward = torch.linalg.lu_solve(factors, pivots, backward)
    condition: Tensor = torch.linalg.vector_norm(weight @ forward) * torch.linalg.vector_norm(backward)
    return condition


class _AffineMap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        logabsdet: Tensor,
        gradient: DenseGradient,
    ) -> tuple[Tensor, Tensor]:
        y = torch.addmm(bias, x, weight.T).to(weight.dtype)  # autocast lowers it
        ctx.gradient, kind = gradient, x.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.save_for_backward(weight, bias, x, y)
        return y, logabsdet.expand(len(x)).clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        weight, bias, x, y = ctx.saved_tensors
        delta, by_ladj = grads
        by_x = by_weight = by_bias = None
        trained = [part for part, need in zip((weight, bias), ctx.needs_input_grad[1:3], strict=True) if need]
        kind, dtype, enabled = ctx.autocast
        with torch.autocast(kind, dtype=dtype, enabled=enabled):
            if ctx.needs_input_grad[0]:
                by_x = delta @ _once(weight, *trained)
            if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
                with torch.no_grad():
                    by_ladj = by_ladj.sum()
                    # The directions of W and b mix the gradients of both. A frozen one has none: without x the output
                    # is b alone and W has no gradient, nor has b without b.
                    if not ctx.needs_input_grad[1]:
                        x, y, by_ladj = torch.zeros_like(x), bias.expand_as(y), torch.zeros_like(by_ladj)
                    if not ctx.needs_input_grad[2]:
                        y, bias = y - bias, torch.zeros_like(bias)
                    by_weight, by_bias = ctx.gradient(Affine(weight, bias, x, y, delta, by_ladj))
                by_weight, by_bias = _once(by_weight, *trained), _once(by_bias, *trained)
        return by_x, by_weight, by_bias, None, None


def _once(value: Tensor, *trained: Tensor) -> Tensor:
    """The value; where a graph is built, one that refuses to be differentiated by what is trained."""
    if not (torch.is_grad_enabled() and trained):
        return value
    once: Tensor = _Once.apply(value, *trained)  # type: ignore[no-untyped-call]
    return once


class _Once(torch.autograd.Function):
    """Stands where autograd would add ordinary gradients to relative directions, or take those for constants."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *trained: Tensor) -> Tensor:  # noqa: ANN401
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:  # noqa: ANN401
        raise SecondDerivativeError(
            "DenseTransform is differentiable once in W and b: the relative gradient is no gradient that could be "
            "differentiated; differentiate twice by inputs only, or call autograd without create_graph=True"
        )
