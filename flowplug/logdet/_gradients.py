"""How a series estimator gets its gradient; either way the value is the log-det."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from flowplug._branch import Branch, Linearization
from flowplug._errors import LipschitzError, SecondDerivativeError

if TYPE_CHECKING:
    from flowplug.logdet._series import Draw, SeriesLogDet, Solved


class Gradient(Protocol):
    """Evaluates a series estimator and attaches a gradient."""

    def __call__(self, series: SeriesLogDet, branch: Branch, x: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        """``g(x): (B, *event)`` and the mean ``(B,)`` of the estimates of all probes."""


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise inner products ``(B,)``."""
    return (a * b).flatten(1).sum(1)


@dataclass(frozen=True)
class Autograd:
    r"""Differentiates a power series term by term; memory grows with the number of terms.

    .. math:: \sum_{k=1}^{n} \frac{(-1)^{k+1} c_k}{k} v^T J^k v

    Example:
        >>> logdet = PowerSeries(gradient=Autograd())
    """

    def __call__(self, series: SeriesLogDet, branch: Branch, x: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        """The series and, through autograd, its gradient."""
        linear = branch.linearize(x)
        trace = None if series.control is None else series.control(linear)
        # Where no term is drawn, a zero that keeps its graph lets a loss of log-dets alone be differentiated.
        total = 0 * linear.y.flatten(1).sum(1) if trace is None else trace * len(draws)
        for v, schedule, order in draws:
            product = v = v[order]
            running = torch.ones_like(v.flatten(1)[:, 0], dtype=torch.bool)
            for k, (weight, count) in enumerate(schedule, 1):
                part = linear.rows(order[:count])
                product = part.vjp(product[:count], create_graph=torch.is_grad_enabled())
                if k > 1 or trace is None:
                    term = dot(product, v[:count]) * running[:count] * ((-1) ** (k + 1) * weight / k)
                    total = total.index_add(0, order[:count], term)
                if series.terms.rtol:
                    size, limit = dot(product, product), dot(v[:count], v[:count]) * series.terms.rtol**2
                    running = running & (size > limit).detach()
                    if not running.any():
                        break
        return linear.y, total / len(draws)


@dataclass(frozen=True)
class Neumann:
    r"""The gradient from one vector u a probe, for which alone a graph is kept.

    .. math:: \nabla \log\det(I + J) = E\big[u^T (\nabla J) v\big], \qquad u = (I + J)^{-T} v

    `PowerSeries` sums u as a Neumann series, :math:`u = \sum_{k=0}^{n-1} (-1)^k c_{k+1} (J^T)^k v`; `Krylov` projects.
    The value is the log-det, from the same n products: n - 1 of them are formed one by one, and :math:`u^T J v` holds
    the last. Value and gradient are each unbiased; each sample's gradient scales with its own weight in the loss.

    Reference: Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling", NeurIPS 2019,
    Theorem 2, whose published code returns :math:`u^T J v` itself in place of the log-det.

    Example:
        >>> logdet = PowerSeries(gradient=Neumann())
    """

    def __call__(self, series: SeriesLogDet, branch: Branch, x: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        """The value, with the gradient attached."""
        linear = branch.linearize(x)
        trace = None if series.control is None else series.control(linear)
        solved = [series.solve(linear, draw, first=trace is None) for draw in draws]
        return linear.y, _combine(linear, solved, trace)


def _combine(linear: Linearization, solved: Sequence[Solved], trace: Tensor | None) -> Tensor:
    """The mean of the estimates: their values, with the gradient of ``u^T J v``."""
    total = torch.zeros_like(solved[0].known) if trace is None else trace * len(solved)
    for v, u, known, share in solved:
        product = dot(linear.vjp(u, create_graph=torch.is_grad_enabled()), v)
        total = total + (known + share * product.detach()) + (product - product.detach())
    return total / len(solved)


@dataclass(frozen=True)
class Recompute:
    r"""Keeps x, u and v instead of the graph, and builds the graph again in the backward pass.

    Peak memory does not grow with the number of terms, and little with the number of blocks, at the price of one more
    evaluation of g and one more product. The gradient is that of `Neumann` exactly, for any per-sample weights of the
    loss, unlike one that is computed early, in the forward pass, as if all weights were equal. Works with
    ``torch.func.functional_call``, autocast and DistributedDataParallel; differentiable once.

    Args:
        gradient: What is recomputed.

    Raises:
        LipschitzError: g draws random numbers (dropout): it would be another function when recomputed.
        SecondDerivativeError: In the backward pass, if a graph of it is asked for.

    Example:
        >>> logdet = Krylov(gradient=Recompute(Neumann()))
    """

    gradient: Neumann = Neumann()

    def __post_init__(self) -> None:
        if not isinstance(self.gradient, Neumann):
            raise TypeError(f"Recompute(gradient=...) must be Neumann(); got {self.gradient}")

    def __call__(self, series: SeriesLogDet, branch: Branch, x: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        """The value, with a gradient that is computed when asked for."""
        named = dict(branch.g.named_parameters())
        y, ladj = _Recomputed.apply(series, branch, draws, tuple(named), x, branch.context, *named.values())  # type: ignore[no-untyped-call]
        return y, ladj


class _Pass(nn.Module):
    """One evaluation of the branch as a module, so that its parameters can be put in place."""

    def __init__(self, g: nn.Module) -> None:
        super().__init__()
        self.g = g

    def forward(
        self, x: Tensor, context: Tensor | None, pairs: Sequence[tuple[Tensor, Tensor]], series: SeriesLogDet
    ) -> tuple[Tensor, Tensor]:
        """``g(x)`` and the mean of ``u^T J v``, the first term included."""
        linear = Branch.of(self.g, context).linearize(x)
        trace = None if series.control is None else series.control(linear)
        total = x.new_zeros(len(x)) if trace is None else trace
        for u, v in pairs:
            total = total + dot(linear.vjp(u, create_graph=True), v) / len(pairs)
        return linear.y, total


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        series: SeriesLogDet,
        branch: Branch,
        draws: Sequence[Draw],
        names: Sequence[str],
        x: Tensor,
        context: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        before = _random_state(x)
        linear = branch.linearize(x)
        if not torch.equal(before, _random_state(x)):
            raise LipschitzError(
                f"g = {type(branch.g).__name__} draws random numbers (dropout?), so x + g(x) is no function of x and "
                "has no inverse, and Recompute cannot repeat it: remove the random modules"
            )
        trace = None if series.control is None else series.control(linear)
        solved = [series.solve(linear, draw, first=trace is None) for draw in draws]
        ctx.series, ctx.g, ctx.names, ctx.count = series, branch.g, names, len(solved)
        kind = x.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.save_for_backward(x, context, *(s.u for s in solved), *(s.v for s in solved), *parameters)
        return linear.y.detach(), _combine(linear, solved, trace).detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        if torch.is_grad_enabled():
            raise SecondDerivativeError(
                "Recompute is differentiable once: call autograd without create_graph=True, or use Neumann()"
            )
        saved = ctx.saved_tensors
        x, context, *parameters = (
            None if tensor is None else tensor.detach().requires_grad_(tensor.requires_grad)
            for tensor in (*saved[:2], *saved[2 + 2 * ctx.count :])
        )
        us, vs = saved[2 : 2 + ctx.count], saved[2 + ctx.count : 2 + 2 * ctx.count]
        kind, dtype, enabled = ctx.autocast
        with torch.enable_grad(), torch.autocast(kind, dtype=dtype, enabled=enabled):
            named: dict[str, Any] = {f"g.{name}": p for name, p in zip(ctx.names, parameters, strict=True)}
            outputs = torch.func.functional_call(
                _Pass(ctx.g), named, (x, context, list(zip(us, vs, strict=True)), ctx.series)
            )
        leaves = (x, context, *parameters)
        wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        # The log-det of an affine branch with frozen weights is a constant.
        used = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if output.requires_grad]
        targets, seeds = zip(*used, strict=True)
        found = iter(torch.autograd.grad(targets, wanted, seeds, allow_unused=True))
        return (None,) * 4 + tuple(None if leaf is None or not leaf.requires_grad else next(found) for leaf in leaves)


def _random_state(x: Tensor) -> Tensor:
    return torch.cuda.get_rng_state(x.device) if x.is_cuda else torch.get_rng_state()
