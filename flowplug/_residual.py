"""Residual flows."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowplug._arguments import given, require_instance, require_ints, require_part
from flowplug._errors import ShapeError
from flowplug._noise import Noise, Replay, current_conditions
from flowplug._operators import define, number_of, owner_of, values_of, with_values
from flowplug._reading import exporting, first_parameter
from flowplug._transform import Transform
from flowplug.branch import Branch, BranchModule, LipschitzBound, Watch, lipschitz_bound, on_meta, require_contraction
from flowplug.logdet import ExactLogDet, LogDet, Series, default_logdet, describe_default
from flowplug.solvers import Anderson, Solver, solve

Method = Callable[["ResidualTransform", Tensor, Tensor | None], tuple[Tensor, Tensor]]


def _outside_inference_mode(method: Method) -> Method:
    """Estimators differentiate, which inference mode forbids: there, works on ordinary copies under ``no_grad``."""

    @functools.wraps(method)
    def wrapped(self: ResidualTransform, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return method(self, x, context)
        with torch.inference_mode(mode=False), torch.no_grad():
            return method(self, x.clone(), None if context is None else context.clone())

    return wrapped


def _may_write(g: nn.Module) -> bool:
    """Whether g may write on buffers when called, which torch.func does not follow, nor so the compiler.

    Networks that make their own branches do so outside the map that is differentiated, if at all.
    """
    return not isinstance(g, BranchModule) and next(g.buffers(), None) is not None


def _differentiable(g: nn.Module) -> nn.Module:
    """The branch or, where its weights were made inside inference mode, which knows no products, a copy."""
    weight = next(g.parameters(), None)
    if torch.compiler.is_compiling() or weight is None or not weight.is_inference():
        return g
    return copy.deepcopy(g)


class ResidualTransform(Transform):
    r"""A residual flow :math:`y = x + g(x, c)` with a contraction g.

    .. math:: \log|\det \partial y / \partial x| = \log\det(I + J_g(x)), \qquad \operatorname{Lip}_x(g) < 1

    Invertible by fixed point, with a free-form Jacobian. Estimates of the log-det are unbiased in value and gradient.
    In train mode they use fresh noise from torch's generators. In eval mode a row's noise is a smooth function of what
    the row holds: repeated calls agree, whatever other rows there are and however they are cut into batches, the noise
    of different rows is independent, so that a mean over N rows has that of one over :math:`\sqrt N`, and gradients are
    unbiased. Samplers, which need values whose exact derivative the gradient is, use `ExactLogDet`, or `PowerSeries`
    with `Autograd` within `fixed_noise`.

    A training step costs a small multiple of the bare networks, and less under ``torch.compile(transform)``
    (docs/benchmarks.md, "Cost of a training step").

    Args:
        g: The residual branch; keeps the shape of x. Its `lipschitz_bound` must be known and below 1. A branch with an
            attribute ``context_features`` > 0 is called as ``g(x, context)``.
        logdet: `ExactLogDet`, `PowerSeries`, ... for train mode. ``None``: chosen by the dimension of the events and
            the device, exact where that costs no more than an estimate: on CPUs to 8 dimensions, on GPUs to 64 in
            batches of at most 32,768 numbers, for which it takes more memory; further for a `LipschitzMLP` with a layer
            narrower than the events.
        eval_logdet: The same for eval mode. ``None``: exact while affordable, else `Krylov` with `Converged` terms.
        solver: Solves for the inverse.
        event_dim: Number of event dimensions; ``None`` takes it from ``g.event_shape``, or 1.
        chunk_size: How many numbers the largest tensor may hold where no gradient is asked for (``torch.no_grad()``):
            as many rows are evaluated at a time as fit, D x D numbers each or less for an exact log-det, else D or the
            widest layer, and at least one. It bounds the memory of sampling and testing, whatever the batch; at least
            1.

    Raises:
        LipschitzError: The bound of g is unknown, or not below 1: at construction, in eval mode and in `inverse`; in
            train mode too, looked at now and then, where nothing keeps it below 1 (`UnboundedBranchWarning`).
        ShapeError: ``event_dim`` is below 1 or contradicts ``g.event_shape``, or g changes the shape of its input.
        NotConverged: The inverse did not converge.
        ValueError: ``chunk_size`` is below 1.

    Reference: Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling", NeurIPS 2019,
    and Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen, "Invertible Residual Networks", ICML 2019.

    Example:
        >>> transform = ResidualTransform(LipschitzMLP(2, (64, 64)))
        >>> x = torch.randn(5, 2)
        >>> y, ladj = transform(x)
        >>> torch.allclose(transform.inverse(y)[0], x, atol=1e-5)
        True
    """

    noise_seed: Tensor

    def __init__(
        self,
        g: nn.Module,
        *,
        logdet: LogDet | None = None,
        eval_logdet: LogDet | None = None,
        solver: Solver = Anderson(),  # noqa: B008 -- frozen and stateless
        event_dim: int | None = None,
        chunk_size: int = 2**23,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        require_instance(name, "g", g, nn.Module, "LipschitzMLP(2)")
        for role, part in {"logdet": logdet, "eval_logdet": eval_logdet}.items():
            if part is not None:
                require_part(name, role, part, "__call__", "a log-det, such as ExactLogDet() or Krylov(), or None")
        require_part(name, "solver", solver, "__call__", "a solver, such as Anderson()")
        require_ints(name, chunk_size=chunk_size, **given(event_dim=event_dim))
        self.g = g
        self._watch = Watch()
        if not on_meta(g):
            lipschitz = self.lipschitz
            self._watch.require_contraction(type(g).__name__, lipschitz)
            for estimator in (logdet, eval_logdet):
                if isinstance(estimator, Series):
                    estimator.check(lipschitz)
        if chunk_size < 1:
            raise ValueError(f"ResidualTransform(chunk_size=...) must be at least 1; got {chunk_size}")
        self.chunk_size = chunk_size
        self.logdet, self.eval_logdet, self.solver = logdet, eval_logdet, solver
        if event_dim is not None and event_dim < 1:
            raise ShapeError(f"ResidualTransform(event_dim=...) must be at least 1; got {event_dim}")
        self.event_shape = getattr(g, "event_shape", None)
        known = 1 if self.event_shape is None else len(self.event_shape)
        if event_dim is not None and event_dim != known and self.event_shape is not None:
            raise ShapeError(f"event_dim={event_dim} contradicts the event shape {self.event_shape} of g")
        self.event_dim = known if event_dim is None else event_dim
        self.context_features = getattr(g, "context_features", 0)
        # Part of the state, so that a loaded model repeats the log-dets of the saved one, and of 24 bits, so that an
        # average in single precision holds it.
        self.register_buffer("noise_seed", torch.randint(2**31, ()) % 2**24)
        self.replay, self._copies, self._number = Replay(), 0, number_of(self)
        self._lineage: tuple[int, ...] = ()  # which copy of which copy it is

    def __deepcopy__(self, memo: dict[int, Any]) -> ResidualTransform:
        """A copy that has noise of its own under `fixed_noise`, as a flow may be built of copies."""
        self._copies += 1
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        twin._lineage, twin._copies, twin._number = (*self._lineage, self._copies), 0, number_of(twin)
        return twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A pickled transform gets a number of its own."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._number = number_of(self)

    @property
    def lipschitz(self) -> LipschitzBound:
        """The bound of g from the weights in use."""
        return lipschitz_bound(self.g)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling() and _may_write(self.g):
            return torch.compiler.disable(self._pass)(x, context)  # type: ignore[no-any-return,no-untyped-call]
        return self._pass(x, context)

    @_outside_inference_mode
    def _pass(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        def direction(rows: Tensor, branch: Branch, noise: Noise) -> tuple[Tensor, Tensor]:
            if torch.compiler.is_compiling():
                # No value is looked at while tracing: what no parameters can carry to 1 is left alone.
                watched = not (self._watch.kept or exporting())
                rows = rows if not watched else rows + _look(rows.detach(), values_of(self.g), self._number)
            else:
                self.look(branch.lipschitz_bound)
            gx, ladj = self._evaluate(branch, rows, noise)
            return rows + gx, ladj

        return self._by_rows(direction, x, context)

    @_outside_inference_mode
    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        def direction(rows: Tensor, branch: Branch, noise: Noise) -> tuple[Tensor, Tensor]:
            require_contraction(type(self.g).__name__, branch.lipschitz_bound())
            x = solve(self.solver, branch, rows)
            return x, x.new_zeros(len(x)) if current_conditions().skip else -self._evaluate(branch, x, noise)[1]

        return self._by_rows(direction, y, context)

    def _by_rows(
        self,
        direction: Callable[[Tensor, Branch, Noise], tuple[Tensor, Tensor]],
        x: Tensor,
        context: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Applies a direction to rows ``(B, *event)``, ``chunk_size`` at a time where no graph is built."""
        batch, event = x.shape[: x.dim() - self.event_dim], x.shape[x.dim() - self.event_dim :]
        if 0 in event:
            raise ShapeError(f"{type(self).__name__} needs events with entries; got {tuple(x.shape)}")
        count = math.prod(batch)
        with self.replay():
            # By place in the batch, noise must not depend on how that is cut.
            whole = torch.is_grad_enabled() or current_conditions().seed is not None or exporting()
            rows = x.reshape(count, *event)
            contexts = None if context is None else context.reshape(count, self.context_features)
            branch = Branch.of(_differentiable(self.g), contexts)
            size = count if whole else max(1, self.chunk_size // self._numbers(branch, rows))
            if count <= size:
                y, ladj = direction(rows, branch, self._noise())
            else:
                pieces = [slice(start, start + size) for start in range(0, count, size)]
                results = [direction(rows[piece], branch.piece(piece), self._noise()) for piece in pieces]
                y, ladj = map(torch.cat, zip(*results, strict=True))
        return y.reshape(x.shape), ladj.reshape(batch)

    def _numbers(self, branch: Branch, rows: Tensor) -> int:
        """How many numbers a row takes in the largest tensor of a pass: a Jacobian, or a hidden layer."""
        event = rows.shape[1:]
        size = math.prod(event)
        matrices = [weight for weight in self.g.parameters() if weight.dim() > 1]
        widths = [len(weight) * (math.prod(event[1:]) if weight.dim() > 2 else 1) for weight in matrices]
        exact = isinstance(self._estimator(branch, rows), ExactLogDet) and not current_conditions().skip
        return max([branch.core_size(event) ** 2 if exact else size, size, *widths])

    def look(self, measure: Callable[[], LipschitzBound]) -> None:
        """Requires a contraction, in eval mode always, in train mode now and then."""
        if not self.training or self._watch.due():
            self._watch.require_contraction(type(self.g).__name__, measure())

    def _noise(self) -> Noise:
        seed = current_conditions().seed
        if seed is not None:
            return Noise(self.noise_seed, mix=(seed, self._lineage), number=self._number)
        if self.training:
            return Noise(number=self._number)
        return Noise(self.noise_seed, by_content=True, number=self._number)

    def _evaluate(self, branch: Branch, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """``g(x): (B, *event)`` and the log-det ``(B,)``."""
        if current_conditions().skip:
            return branch(x), x.new_zeros(x.shape[0])
        gx, ladj = self._estimator(branch, x)(branch, x, noise)
        # Estimators turn autograd on for their products; outside, the caller's mode holds.
        return (gx, ladj) if torch.is_grad_enabled() else (gx.detach(), ladj.detach())

    def _estimator(self, branch: Branch, x: Tensor) -> LogDet:
        """The log-det in this mode, for events ``(B, *event)``."""
        logdet = self.logdet if self.training else self.eval_logdet
        if logdet is not None:
            return logdet
        return default_logdet(branch, x, training=self.training)

    def extra_repr(self) -> str:
        """Names the strategies, those that are chosen where none is given included."""
        strategies = {
            "logdet": self._chosen(training=True) if self.logdet is None else self.logdet,
            "eval_logdet": self._chosen(training=False) if self.eval_logdet is None else self.eval_logdet,
            "solver": self.solver,
        }
        return "\n".join(f"{name}={strategy}" for name, strategy in strategies.items())

    def _chosen(self, *, training: bool) -> str:
        """The default log-det, as far as it is known before a pass."""
        g, sizes = self.g, self.event_shape or (None,)
        branch = g.sketch() if isinstance(g, BranchModule) else Branch(g, None)
        event = [size for size in sizes if size is not None]
        if branch is None or len(event) < len(sizes):
            return "None (chosen by the size of the events)"
        like = first_parameter(g)
        return describe_default(branch, event, cuda=like is not None and like.is_cuda, training=training)


@define("look", "(Tensor like, Tensor[] values, int owner) -> Tensor", lambda like, values, owner: like.new_empty(()))
@torch.no_grad()
def _look(like: Tensor, values: list[Tensor], owner: int) -> Tensor:
    """Zero, once the bound has been looked at; for compiled graphs."""
    transform: ResidualTransform = owner_of(owner)
    with_values(transform.g, values, lambda g: transform.look(functools.partial(lipschitz_bound, g)))
    return like.new_zeros(())
