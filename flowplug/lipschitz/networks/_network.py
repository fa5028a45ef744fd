"""What the networks share: bounded layers, activations between them, and a context that enters unbounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from flowplug._errors import ContextError, ShapeError
from flowplug._memory import Memory
from flowplug._precision import autocast_enabled, full_precision
from flowplug._reading import transformed
from flowplug.branch import (
    Branch,
    BranchModule,
    Linearization,
    LipschitzBound,
    compose_bounds,
    lipschitz_bound,
    on_meta,
    require_contraction,
    require_plain,
    rule_for,
)
from flowplug.lipschitz.layers import Layer, LipschitzLayer
from flowplug.lipschitz.norms import NetworkNorm, OperatorNorm

Affine = Callable[[int, Tensor], Tensor]
Result = TypeVar("Result")


class LipschitzNetwork(BranchModule):
    """A network ``g(x, c)`` of layers, whose bias depends on the context, with activations between them.

    The layers are bounded one by one, or as a whole by a `NetworkNorm`. A subclass makes the parts and calls
    ``_finish``; one that does not apply them in turn overrides `evaluate` and `certify`.

    Attributes:
        event_shape: Sizes of the events, ``None`` where any size fits.
        context_features: Width of the context, 0 for none.
        bound: The largest Lipschitz constant allowed.

    Example:
        >>> g = LipschitzMLP(3, (64,), bound=0.9)
        >>> isinstance(g, LipschitzNetwork), len(g.bounded_weights())
        (True, 2)
    """

    event_shape: tuple[int | None, ...]
    context_features: int
    bound: float

    def _finish(
        self,
        layers: Sequence[Layer],
        activations: Sequence[nn.Module],
        *,
        context_features: int,
        bound: float,
        norm: OperatorNorm | NetworkNorm | Sequence[OperatorNorm],
        zero: bool,
    ) -> None:
        self.layers, self.activations = nn.ModuleList(layers), nn.ModuleList(activations)
        self.context_features, self.bound = context_features, bound
        self._whole = norm if isinstance(norm, NetworkNorm) else None
        self._bounded: Memory[list[Tensor]] = Memory()
        self._measured: Memory[list[LipschitzBound]] = Memory()
        widths = [layer.width for layer in layers]
        embedding = nn.Linear(context_features, sum(widths), bias=False) if context_features else None
        self.embedding = embedding
        if zero:
            with torch.no_grad():
                layers[-1].weight.zero_()
                cast(Tensor, layers[-1].bias).zero_()
                if embedding is not None:
                    embedding.weight[-widths[-1] :].zero_()
        if not on_meta(self):
            require_contraction(type(self).__name__, lipschitz_bound(self))

    def evaluate(self, x: Tensor, affine: Affine) -> Tensor:
        """The network on rows ``(B, features)`` or ``(B, channels, H, W)``, where ``affine(i, h)`` is layer i."""
        hidden = affine(0, x)
        for i, activation in enumerate(self.activations, 1):
            hidden = affine(i, activation(hidden))
        return hidden

    def certify(self, weights: Sequence[Tensor]) -> LipschitzBound:
        """The Lipschitz bound of the network with these weights in use."""
        if self._whole is not None:
            return self._whole.certify(weights, list(self.activations))
        bounds = self.layer_bounds(weights)
        behind = [part for pair in zip(self.activations, bounds[1:], strict=True) for part in pair]
        return compose_bounds(type(self).__name__, bounds[0], *behind)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Maps ``(*batch, *event)``, with a context ``(*batch, context_features)``, to the same shape."""
        batch, event = x.shape[: max(0, x.dim() - len(self.event_shape))], self.event_shape
        got = x.shape[len(batch) :]
        fits = len(got) == len(event) and all(size in (None, found) for size, found in zip(event, got, strict=True))
        if not (fits and all(got)):
            raise ShapeError(f"{type(self).__name__} expects inputs (*batch, *{event}); got {tuple(x.shape)}")
        rows = math.prod(batch)
        if context is not None:
            context = context.expand(*batch, context.shape[-1]).reshape(rows, context.shape[-1])
        require_plain(self, itself=False)
        return self.branch(context)(x.reshape(rows, *got)).reshape(x.shape)

    def branch(self, context: Tensor | None) -> NetworkBranch:
        """The network for one pass: weights bounded and context ``(B, context_features)`` embedded once.

        Raises:
            ContextError: The context is missing or has the wrong width.
        """
        return self._branch(context, self.bounded_weights(), self.shifts(context))

    def sketch(self) -> NetworkBranch:
        """A branch to ask for sizes, with the weights as they are."""
        return self._branch(None, [layer.weight for layer in self._layers()], [])

    def _branch(self, context: Tensor | None, weights: Sequence[Tensor], shifts: Sequence[Tensor]) -> NetworkBranch:
        return NetworkBranch(self, context, weights, shifts)

    def bounded_weights(self) -> list[Tensor]:
        """The weights in use, one per layer."""
        weights = [layer.weight for layer in self._layers()]
        if not self._remembers():
            return self._project(weights)
        # Copies of what is remembered, which a caller may write on.
        return [weight.clone() for weight in self._recall(self._bounded, partial(self._project, weights))]

    def _project(self, weights: list[Tensor]) -> list[Tensor]:
        if not autocast_enabled(weights[0]):  # a context would break compiled graphs
            return self._projected(weights)
        with full_precision(weights[0]):
            return self._projected(weights)

    def _projected(self, weights: list[Tensor]) -> list[Tensor]:
        if self._whole is not None:
            return self._whole.project(weights, list(self.activations), self.bound)
        layers = self._limited()
        if all(_bounded_alike(layer, layers[0]) for layer in layers):
            return layers[0].norm.project_all(weights, [layer.bound for layer in layers])
        return [layer.bounded_weight() for layer in layers]

    def layer_bounds(self, weights: Sequence[Tensor]) -> list[LipschitzBound]:
        """The bounds of the layers with these weights in use."""

        def measure() -> list[LipschitzBound]:
            return [layer.certify(weight) for layer, weight in zip(self._limited(), weights, strict=True)]

        return self._recall(self._measured, measure, *weights) if self._remembers() else measure()

    def _remembers(self) -> bool:
        """Whether what follows from the layers may be remembered: no graph is wanted, and nothing else plays a part."""
        graph = torch.is_grad_enabled() or torch.compiler.is_compiling() or transformed()
        return not graph and self._whole is None and all(map(_is_pure, self._limited()))

    def _recall(self, memory: Memory[list[Result]], compute: Callable[[], list[Result]], *more: Tensor) -> list[Result]:
        """What follows from the layers, found again once they have changed."""
        state = [*more, *self.layers.parameters(), *self.layers.buffers()]
        return list(memory(state, [(layer.bound, layer.norm) for layer in self._limited()], compute))

    def shifts(self, context: Tensor | None) -> list[Tensor]:
        """The bias of each layer, ``(out,)``, or with a context ``(B, out)``.

        Raises:
            ContextError: The context is missing or has the wrong width.
        """
        layers = self._layers()
        biases = [cast(Tensor, layer.bias) for layer in layers]
        if self.embedding is None:
            return biases
        if context is None or context.shape[-1] != self.context_features:
            got = "none" if context is None else f"shape {tuple(context.shape)}"
            raise ContextError(f"{type(self).__name__} needs a context of width {self.context_features}; got {got}")
        embedded = self.embedding(context).split([layer.width for layer in layers], dim=-1)
        return [bias + part for bias, part in zip(biases, embedded, strict=True)]

    def extra_repr(self) -> str:
        """The bound, and its norm where that is one; layers show norms that have parameters of their own."""
        norms = [layer.norm for layer in self._limited()] if self._whole is None else [self._whole]
        alike = all(norm is norms[0] and not isinstance(norm, nn.Module) for norm in norms)
        return f"bound={self.bound:.6g}" + (f", norm={norms[0]}" if alike else "")

    def _layers(self) -> list[Layer]:
        return [cast(Layer, layer) for layer in self.layers]

    def _limited(self) -> list[LipschitzLayer]:
        return [cast(LipschitzLayer, layer) for layer in self.layers]


def _bounded_alike(layer: LipschitzLayer, other: LipschitzLayer) -> bool:
    return (
        type(layer).bounded_weight is LipschitzLayer.bounded_weight
        and layer.norm is other.norm
        and layer.weight.device == other.weight.device
        and layer.weight.dtype == other.weight.dtype
    )


def _is_pure(layer: LipschitzLayer) -> bool:
    """Whether what the layer makes of its weight follows from that, its bound and a norm that cannot change."""
    norm = layer.norm
    frozen = is_dataclass(norm) and type(norm).__dataclass_params__.frozen
    return frozen and type(layer).bounded_weight is LipschitzLayer.bounded_weight


@rule_for(LipschitzNetwork)
def _(module: LipschitzNetwork) -> LipschitzBound:
    return module.certify(module.bounded_weights())._replace(limit=module.bound)


class ClosedForm(Linearization):
    """Products in closed form, of one vector a row or, row after row, of several; and the Jacobian."""

    def jacobian(self) -> Tensor:
        """The matrices ``(B, D, D)``; here by D products."""
        rows, event = len(self.y), self.y.shape[1:]
        size = math.prod(event)
        basis = torch.eye(size, dtype=self.y.dtype, device=self.y.device).reshape(size, 1, *event)
        vectors = basis.expand(size, rows, *event).reshape(size * rows, *event)
        products = self.vjp(vectors, create_graph=torch.is_grad_enabled())
        return products.reshape(size, rows, size).transpose(0, 1)

    def core(self) -> Tensor:
        r"""The smallest matrices ``(B, K, K)`` known with :math:`\det(I + M) = \det(I + J)`; here J."""
        return self.jacobian()


class NetworkBranch(Branch):
    """A `LipschitzNetwork` with its bounded weights and shifts, ``(out,)`` or ``(B, out)``, computed once."""

    def __init__(
        self, g: LipschitzNetwork, context: Tensor | None, weights: Sequence[Tensor], shifts: Sequence[Tensor]
    ) -> None:
        super().__init__(g, context)
        self._network, self._weights, self._shifts = g, weights, shifts

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluates the network on rows ``x: (B, *event)``."""
        rows = x if None in self._network.event_shape else x.flatten(1)
        return self._network.evaluate(rows, self._affine).reshape(x.shape).contiguous()

    def _affine(self, i: int, hidden: Tensor) -> Tensor:
        layer = cast(Layer, self._network.layers[i])
        return layer.affine(hidden, self._weights[i], self._shifts[i])

    def linearize(self, x: Tensor) -> Linearization:
        """Products in closed form, where there is one: no graph to walk, each slope taken once."""
        chain = self._chain(x)
        return super().linearize(x) if chain is None else chain

    def jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and Jacobian in one chain of matrix products, where there is a closed form."""
        chain = self._chain(x)
        return super().jacobian(x) if chain is None else (chain.y, chain.jacobian())

    def core(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and smallest matrix in one chain of matrix products, where there is a closed form."""
        chain = self._chain(x)
        return super().core(x) if chain is None else (chain.y, chain.core())

    def _chain(self, x: Tensor) -> ClosedForm | None:
        """The derivative at ``x: (B, *event)`` in closed form, where activations know their slopes."""
        del x
        return None

    def select(self, index: Tensor | slice) -> NetworkBranch:
        """The branch of the rows in ``index`` only."""
        shifts = [shift if shift.dim() == 1 else shift[index] for shift in self._shifts]
        context = None if self.context is None else self.context[index]
        return type(self)(self._network, context, self._weights, shifts)

    def certify(self) -> LipschitzBound:
        """Measures the bound of the network from the weights of this pass."""
        return self._network.certify(self._weights)._replace(limit=self._network.bound)
