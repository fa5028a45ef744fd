"""The residual branch ``x -> g(x, c)`` of one pass: weights and context fixed, rows independent."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowplug._arguments import require_instance
from flowplug._errors import ShapeError
from flowplug._reading import functional, hidden, refuse_vmap
from flowplug.branch._bound import LipschitzBound, lipschitz_bound, outside_autocast
from flowplug.branch._parts import require_plain


class Branch:
    """What log-det estimators and solvers see of ``g`` in one pass.

    A network that can share work between the evaluations of a pass (bounded weights, embedded context) or knows a
    faster Jacobian is a `BranchModule`, and returns its own subclass.

    Args:
        g: The network.
        context: Rows ``(B, context_features)``, or ``None``.

    Attributes:
        trace_pays: Whether the exact trace, where `Linearization.trace` knows it, is worth its time in a training step.

    Example:
        >>> branch = Branch.of(LipschitzMLP(2), None)
        >>> y, jacobian = branch.jacobian(torch.zeros(5, 2))
        >>> y.shape, jacobian.shape
        (torch.Size([5, 2]), torch.Size([5, 2, 2]))
    """

    trace_pays: ClassVar[bool] = True
    _lipschitz: LipschitzBound | None = None
    _whole: Branch | None = None

    def __init__(self, g: nn.Module, context: Tensor | None) -> None:
        require_instance("Branch", "g", g, nn.Module, "LipschitzMLP(2)")
        if context is not None:
            require_instance("Branch", "context", context, Tensor, "torch.zeros(5, 2)")
        self.g, self.context = g, context

    @staticmethod
    def of(g: nn.Module, context: Tensor | None) -> Branch:
        """The branch of ``g`` for rows of context ``(B, context_features)``.

        Raises:
            LipschitzError: A part of g has hooks, or a forward of the instance's own.
        """
        require_plain(g)
        return g.branch(context) if isinstance(g, BranchModule) else Branch(g, context)

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluates ``g`` on rows ``x: (B, *event)``."""
        copy = x.clone()  # some modules write on their input
        y: Tensor = self.g(copy) if self.context is None else self.g(copy, self.context)
        if y.shape != x.shape:
            raise ShapeError(
                f"g = {type(self.g).__name__} must keep the shape of its input {tuple(x.shape)}; "
                f"it returned {tuple(y.shape)}"
            )
        return y

    def select(self, index: Tensor | slice) -> Branch:
        """The branch of the rows in ``index`` only; a subclass that keeps more than g and context selects from that."""
        return Branch.of(self.g, None if self.context is None else self.context[index])

    def piece(self, index: slice) -> Branch:
        """The branch of some rows, of which the bound is that of the whole."""
        piece = self.select(index)
        piece._whole = self
        return piece

    def certify(self) -> LipschitzBound:
        """Measures the bound of ``g`` from the weights of this pass."""
        return lipschitz_bound(self.g)

    def lipschitz_bound(self) -> LipschitzBound:
        """The bound of ``g`` from the weights of this pass as a number, measured and read once."""
        if self._lipschitz is None and self._whole is not None:
            self._lipschitz = self._whole.lipschitz_bound()
        elif self._lipschitz is None:
            # No graph, whose tensors checkpointing would count: the passes differ in whether they measure.
            with torch.no_grad(), outside_autocast(self.g):
                measured = self.certify()
            self._lipschitz = measured._replace(value=_read(measured))
        return self._lipschitz

    def linearize(self, x: Tensor) -> Linearization:
        """``g`` and its derivative at ``x: (B, *event)``; works in any grad mode."""
        return AutogradLinearization(self, x)

    def jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``g(x): (B, *event)`` and its Jacobian ``(B, D, D)`` by D vector-Jacobian products, D the event's size."""
        linear = AutogradLinearization(self, x)
        size = math.prod(x.shape[1:])
        basis = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:]).expand(size, *x.shape)
        products = linear.vjp(basis, batched=True, create_graph=torch.is_grad_enabled())
        return linear.y, products.reshape(size, x.shape[0], size).transpose(0, 1)

    def core(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""``g(x): (B, *event)`` and the smallest matrices known with :math:`\det(I + M) = \det(I + J)`: here J.

        Args:
            x: Rows ``(B, *event)``; M is ``(B, K, K)`` with the K of `core_size`.
        """
        return self.jacobian(x)

    def core_size(self, event: Sequence[int]) -> int:
        """The K of `core` for events of these sizes; here their product."""
        return math.prod(event)


class BranchModule(nn.Module, abc.ABC):
    """A network that makes its own `Branch`, as `LipschitzMLP` does; any other g gets the general one.

    Example:
        >>> class Scale(BranchModule):
        ...     def forward(self, x):
        ...         return 0.5 * x
        ...     def branch(self, context):
        ...         return Branch(self, context)
        >>> Branch.of(Scale(), None)(torch.ones(1, 2))
        tensor([[0.5000, 0.5000]])
    """

    @abc.abstractmethod
    def branch(self, context: Tensor | None) -> Branch:
        """The network for one pass over rows with this context, ``(B, context_features)`` or ``None``."""

    def sketch(self) -> Branch | None:
        """A branch to ask for sizes, made without computing anything; ``None`` where only a pass has one."""
        return None


class Linearization(abc.ABC):
    """``g`` and its Jacobian J at one point, without the matrix.

    Attributes:
        y: ``g(x): (B, *event)``.

    Example:
        >>> linear = Branch.of(LipschitzMLP(2), None).linearize(torch.zeros(5, 2))
        >>> linear.vjp(torch.ones(5, 2)).shape
        torch.Size([5, 2])
    """

    y: Tensor

    @abc.abstractmethod
    def vjp(self, v: Tensor, *, create_graph: bool = False) -> Tensor:
        """The vector-Jacobian products ``J^T v`` for ``v: (B, *event)``, with a graph only if ``create_graph``."""

    @abc.abstractmethod
    def select(self, index: Tensor | slice) -> Linearization:
        """The linearization at the rows in ``index`` only, each at most once."""

    def trace(self) -> Tensor | None:
        """The trace of J, ``(B,)``, where it costs no more than a product; else ``None``."""
        return None


class AutogradLinearization(Linearization):
    """Products by the graph of one evaluation of any ``g``."""

    def __init__(self, branch: Branch, x: Tensor) -> None:
        self._branch, self._at = branch, x
        self._pull: Callable[..., Any] | None = None
        if functional():
            self.y, self._pull, *_ = torch.func.vjp(lambda at: branch(at).to(x.dtype), x)
            return
        with torch.enable_grad():
            # A view, not x: paths from x to the context or to other inputs are no part of the Jacobian, and the
            # caller's tensor is not marked.
            self._x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
            self.y = branch(self._x).to(x.dtype)  # autocast lowers it

    def vjp(self, v: Tensor, *, create_graph: bool = False, batched: bool = False) -> Tensor:
        """The products for ``v: (B, *event)``, or for a stack ``(K, B, *event)`` when ``batched``."""
        if self._pull is not None:
            products: Tensor = (torch.func.vmap(self._pull) if batched else self._pull)(v)[0]
            return products if create_graph else products.detach()
        return torch.autograd.grad(
            self.y,
            self._x,
            v,
            retain_graph=True,
            create_graph=create_graph,
            is_grads_batched=batched,
            allow_unused=True,
            materialize_grads=True,
        )[0]

    def select(self, index: Tensor | slice) -> Linearization:
        """The linearization at the rows in ``index`` only, by the same graph while it is worth its rows."""
        return self._at_rows(torch.arange(len(self.y), device=self.y.device)[index])

    def _at_rows(self, rows: Tensor) -> Linearization:
        # Evaluated anew once half of them are left, so that rows may leave one by one at the cost of few evaluations.
        if 2 * len(rows) > len(self.y):
            return _Rows(self, rows)
        return self._branch.select(rows).linearize(self._at[rows])


class _Rows(Linearization):
    """Some rows of a linearization, each at most once, by products of all."""

    def __init__(self, whole: AutogradLinearization, rows: Tensor) -> None:
        self._whole, self._rows, self.y = whole, rows, whole.y[rows]

    def vjp(self, v: Tensor, *, create_graph: bool = False) -> Tensor:
        """The products for ``v: (R, *event)``."""
        scattered = v.new_zeros(self._whole.y.shape).index_copy(0, self._rows, v)
        return self._whole.vjp(scattered, create_graph=create_graph).index_select(0, self._rows)

    def select(self, index: Tensor | slice) -> Linearization:
        """The linearization at the rows in ``index`` of these."""
        return self._whole._at_rows(self._rows[index])


def _read(bound: LipschitzBound) -> float:
    """The value, or what it cannot exceed, where it is hidden from the reader."""
    if isinstance(bound.value, Tensor) and hidden(bound.value):
        if bound.limit < 1:
            return bound.limit
        refuse_vmap(
            "the Lipschitz bound of a g that nothing keeps below 1 is read",
            "map over x alone, or make g of flowplug's networks, such as LipschitzMLP",
        )
    return float(bound)
