"""Networks whose layers follow each other: their derivative is a product of weights and slopes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

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

    def _parts(self, x: Tensor) -> Parts | None:
        """The network at rows ``x``, where all activations know their slopes."""
        activations = list(self._network.activations)
        if not all(map(knows_slope, activations)):
            return None
        widths = [weight.shape[0] for weight in self._weights[:-1]]
        folded = self._folded(
            [
                activation.frequency(width) if isinstance(activation, Activation) else None
                for activation, width in zip(activations, widths, strict=True)
            ]
        )
        hidden, slopes = folded._affine(0, x), []
        for i, activation in enumerate(activations, 1):
            hidden, slope = linearize(activation, hidden)
            hidden = folded._affine(i, hidden)
            slopes.append(slope)
        return Parts(hidden, list(folded._weights), slopes)

    def _folded(self, frequencies: Sequence[Tensor | None]) -> ChainBranch:
        """The same function of activations with frequency 1, scaled by the weights around them, which are smaller."""
        weights, shifts = list(self._weights), list(self._shifts)
        for i, frequency in enumerate(frequencies):
            if frequency is not None:
                taps = (1,) * (weights[i].dim() - 2)
                weights[i], shifts[i] = weights[i] * frequency.reshape(-1, 1, *taps), shifts[i] * frequency
                weights[i + 1] = weights[i + 1] / frequency.reshape(-1, *taps)
        return type(self)(self._network, self.context, weights, shifts)
