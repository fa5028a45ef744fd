"""Networks whose layers follow each other: their derivative is a product of weights and slopes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowplug._reading import functional
from flowplug.branch import lipschitz_bound
from flowplug.lipschitz.activations import Activation, linearize
from flowplug.lipschitz.networks._network import NetworkBranch


class Parts(NamedTuple):
    """What a network comes to at a point.

    Attributes:
        y: Its value.
        weights: Those of the layers, of activations with frequency 1.
        slopes: Those of the activations between them.
    """

    y: Tensor
    weights: list[Tensor]
    slopes: list[Tensor]


def knows_slope(activation: nn.Module) -> bool:
    """Whether an activation is element-wise, so that its slopes are all of its derivative."""
    return isinstance(activation, Activation) or lipschitz_bound(activation).elementwise


class ChainBranch(NetworkBranch):
    """A network of layers in turn for one pass."""

    _unit: ChainBranch | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluates the network on rows ``x: (B, *event)``, to the bit alike with a graph and without."""
        if functional() or not all(map(knows_slope, self._network.activations)):
            return super().__call__(x)
        graph = torch.is_grad_enabled()
        unit = self._folded() if graph or self._unit is None else self._unit
        self._unit = None if graph else unit
        hidden = unit._affine(0, self._entered(x))
        for i, activation in enumerate(self._network.activations, 1):
            hidden = unit._affine(i, _value(activation, hidden, graph=graph))
        return hidden.reshape(x.shape).contiguous()

    def _entered(self, x: Tensor) -> Tensor:
        """What the first layer sees of rows ``(B, *event)``."""
        return x.flatten(1)

    def _parts(self, x: Tensor) -> Parts | None:
        """The network at rows ``x``, where all activations know their slopes."""
        activations = list(self._network.activations)
        if not all(map(knows_slope, activations)):
            return None
        folded = self._folded()
        hidden, slopes = folded._affine(0, x), []
        for i, activation in enumerate(activations, 1):
            hidden, slope = linearize(activation, hidden)
            hidden = folded._affine(i, hidden)
            slopes.append(slope)
        return Parts(hidden, list(folded._weights), slopes)

    def _folded(self) -> ChainBranch:
        """The same function of activations with frequency 1, scaled by the weights around them, which are smaller."""
        weights, shifts = list(self._weights), list(self._shifts)
        for i, activation in enumerate(self._network.activations):
            frequency = activation.frequency(len(weights[i])) if isinstance(activation, Activation) else None
            if frequency is not None:
                taps = (1,) * (weights[i].dim() - 2)
                weights[i], shifts[i] = weights[i] * frequency.reshape(-1, 1, *taps), shifts[i] * frequency
                weights[i + 1] = weights[i + 1] / frequency.reshape(-1, *taps)
        return type(self)(self._network, self.context, weights, shifts)


def _value(activation: nn.Module, x: Tensor, *, graph: bool) -> Tensor:
    """The value, of an activation with frequency 1, on top of what it is applied to where there is no graph."""
    value: Tensor
    if not isinstance(activation, Activation) or (graph and activation.frequency(x.shape[1]) is None):
        value = activation(x)
    elif graph:
        value = activation.linearize(x)[0]
    else:
        value = activation.overwrite(x)
    return value
