"""What the networks share: bounded layers, activations between them, and a context that enters unbounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from flowplug._arguments import require_bools, require_ints, require_numbers, require_positive
from flowplug._errors import ContextError, LipschitzError, ShapeError
from flowplug._precision import autocast_enabled, full_precision
from flowplug.branch import (
    Branch,
    BranchModule,
    LipschitzBound,
    bound_in,
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


class LipschitzNetwork(BranchModule):
    """A network ``g(x, c)`` of layers, whose bias depends on the context, with activations between them.

    The layers are bounded one by one, or as a whole by a `NetworkNorm`. A subclass makes the parts and calls `_finish`;
    one that does not apply them in turn overrides `evaluate` and `certify`.

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
        bounds = [layer.certify(weight) for layer, weight in zip(self._limited(), weights, strict=True)]
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
        return NetworkBranch(self, context, self.bounded_weights(), self.shifts(context))

    def bounded_weights(self) -> list[Tensor]:
        """The weights in use, one per layer."""
        weights = [layer.weight for layer in self._layers()]
        if not autocast_enabled(weights[0]):  # a context would break compiled graphs
            return self._project(weights)
        with full_precision(weights[0]):
            return self._project(weights)

    def _project(self, weights: list[Tensor]) -> list[Tensor]:
        if self._whole is not None:
            return self._whole.project(weights, list(self.activations), self.bound)
        layers = self._limited()
        if all(_bounded_alike(layer, layers[0]) for layer in layers):
            return layers[0].norm.project_all(weights, [layer.bound for layer in layers])
        return [layer.bounded_weight() for layer in layers]

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
        """The bound, and the norm of the network as a whole."""
        return f"bound={self.bound}" + ("" if self._whole is None else f", norm={self._whole}")

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


@rule_for(LipschitzNetwork)
def _(module: LipschitzNetwork) -> LipschitzBound:
    return module.certify(module.bounded_weights())._replace(limit=module.bound)


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
        return self._network.evaluate(rows, self._affine).reshape(x.shape)

    def _affine(self, i: int, hidden: Tensor) -> Tensor:
        layer = cast(Layer, self._network.layers[i])
        return layer.affine(hidden, self._weights[i], self._shifts[i])

    def select(self, index: Tensor | slice) -> NetworkBranch:
        """The branch of the rows in ``index`` only."""
        shifts = [shift if shift.dim() == 1 else shift[index] for shift in self._shifts]
        context = None if self.context is None else self.context[index]
        return type(self)(self._network, context, self._weights, shifts)

    def certify(self) -> LipschitzBound:
        """Measures the bound of the network from the weights of this pass."""
        return self._network.certify(self._weights)._replace(limit=self._network.bound)


def check_sizes(
    name: str, bound: float, context_features: int, *, zero_last: bool, **sizes: int | Sequence[int]
) -> None:
    """Refuses what no network can be made of.

    Raises:
        TypeError: An argument is of another kind.
        LipschitzError: ``bound`` is not in (0, 1).
        ShapeError: A size is not positive, or ``context_features`` negative.
    """
    require_bools(name, zero_last=zero_last)
    require_ints(name, context_features=context_features)
    if context_features < 0:
        raise ShapeError(f"{name}(context_features=...) must not be negative; got {context_features}")
    require_numbers(name, bound=bound)
    if not 0 < bound < 1:
        raise LipschitzError(f"{name}(bound=...) must be in (0, 1), else x + g(x) may not invert; got {bound}")
    require_positive(name, **sizes)


def norms_of(
    name: str, norm: OperatorNorm | NetworkNorm | Sequence[OperatorNorm], count: int
) -> Sequence[OperatorNorm | NetworkNorm]:
    """What bounds each layer: a norm of its own, or that of the network.

    Raises:
        LipschitzError: Another number of norms is given than there are layers, or something else.
    """
    if isinstance(norm, OperatorNorm):
        return norm.chain(count)
    if isinstance(norm, NetworkNorm):
        return [norm] * count
    if not (isinstance(norm, Sequence) and all(isinstance(inner, OperatorNorm) for inner in norm)):
        raise LipschitzError(
            f"{name}(norm=...) must be a norm of layers (Gram(), InfNorm(), ...), a list of them, or one of the whole "
            f"network (PathNorm()); got {norm}"
        )
    if len(norm) != count:
        raise LipschitzError(f"{name} has {count} layers and needs one norm for all, or as many; got {len(norm)}")
    return norm


def make_activation(
    make: Callable[[], nn.Module], norm: OperatorNorm | NetworkNorm, width: int, *, spatial: int
) -> tuple[nn.Module, int]:
    """An activation behind a layer of this norm and width, and the width it returns.

    Raises:
        TypeError: ``make`` is a module, or cannot be called.
        LipschitzError: Its bound is unknown, above 1, or that of an element-wise module, which it is not.
    """
    if isinstance(make, nn.Module) or not callable(make):
        raise TypeError(f"activation=... must make a module, such as SineHuber or lambda: Swish(1.0); got {make!r}")
    try:
        module = make()
    except TypeError as error:
        raise TypeError(f"activation=... is called without arguments: {error}") from error
    if not isinstance(module, nn.Module):
        raise TypeError(f"activation=... must make a module, such as SineHuber or lambda: Swish(1.0); made {module!r}")
    with torch.no_grad():
        made = int(module(torch.zeros(1, width, *[1] * spatial)).shape[1])
    if on_meta(module):
        return module, made
    bound = bound_in(module, norm.lowest() if isinstance(norm, OperatorNorm) else norm.order)
    if not float(bound) <= 1:
        raise LipschitzError(f"{type(module).__name__} has the bound {bound}, above 1")
    if bound.elementwise and made != width:
        raise LipschitzError(
            f"{type(module).__name__} is declared element-wise, and makes {made} channels of {width}: register its "
            "bound without elementwise=True"
        )
    return module, made
