"""Norms whose orders are trained with the weights, tied from layer to layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowplug._arguments import require_bools, require_numbers
from flowplug._errors import LipschitzError
from flowplug._precision import at_least_single
from flowplug._scalars import OneNumber
from flowplug.lipschitz.norms._induced import InducedNorm, check_kernel, induced_bound
from flowplug.lipschitz.norms._operator_norm import OperatorNorm


@dataclass(frozen=True)
class LearnedOrder(OperatorNorm):
    r"""Induced norms whose orders are trained with the weights, and tied from layer to layer.

    .. math:: |J_g|_{p_0} \le |W_n|_{p_{n-1} \to p_0} \cdots |W_2|_{p_1 \to p_2} |W_1|_{p_0 \to p_1}, \qquad
        p_l = \text{low} + (\text{high} - \text{low}) \, \sigma(s_l)

    A network given this norm makes one order for each of its spaces, such that every layer starts where the last one
    ended and the network ends where it started; `chain` does the same for layers of your own. Weights are scaled by
    the upper bound of `InducedNorm`, which the orders get their gradients through: a power method, which only
    approaches the norm from below, could let g grow beyond its bound. A layer on its own gets one order for both
    sides.

    Reference: Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling", NeurIPS 2019,
    eq. (11) and appendix D, where the orders lie in (1.5, 2.5) as well.

    Args:
        low: Lower end of the orders, at least 1.
        high: Upper end of the orders, finite. The orders start near the middle.
        shared: One order for all spaces of a network, which convolutions need.

    Raises:
        LipschitzError: ``low`` and ``high`` are not increasing or outside [1, inf), or a convolution is given two
            different orders.

    Example:
        >>> first, second = LearnedOrder().chain(2)
        >>> g = nn.Sequential(LipschitzLinear(3, 8, norm=first), nn.Tanh(), LipschitzLinear(8, 3, norm=second))
        >>> bound = lipschitz_bound(g)
        >>> bound.codomain is None, 1.5 < bound.domain < 2.5
        (True, True)
    """

    low: float = 1.5
    high: float = 2.5
    shared: bool = False

    def __post_init__(self) -> None:
        require_numbers("LearnedOrder", low=self.low, high=self.high)
        require_bools("LearnedOrder", shared=self.shared)
        if not 1 <= self.low < self.high < math.inf:
            raise LipschitzError(f"LearnedOrder needs 1 <= low < high < inf; got low={self.low}, high={self.high}")

    def orders(self) -> tuple[float, float]:
        """The orders before training."""
        return ((self.low + self.high) / 2,) * 2

    def measure(self, weight: Tensor) -> Tensor:
        """The upper bound before training."""
        return InducedNorm(*self.orders()).measure(weight)

    def attach(self, weight: Tensor) -> OperatorNorm:
        """An order of the layer's own, for both sides."""
        return self.chain(1)[0].attach(weight)

    def chain(self, count: int) -> Sequence[OperatorNorm]:
        """The norms of ``count`` layers that follow each other, with tied orders."""
        orders = [Order(self.low, self.high) for _ in range(1 if self.shared else count)]
        return [
            TiedNorm(orders[i % len(orders)], orders[(i + 1) % len(orders)], own=i < len(orders)) for i in range(count)
        ]


class Order(OneNumber):
    """The order of the norm of one space, trained; called without arguments."""

    number = "raw"

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        # Not in the middle, where the bound may have a kink; and orders that are not tied differ from the start.
        self.raw = nn.Parameter(0.1 * torch.randn(1))

    def forward(self) -> Tensor:
        """The order, a scalar tensor."""
        return self.low + (self.high - self.low) * torch.sigmoid(self.raw).squeeze(0)


class TiedNorm(OperatorNorm, nn.Module):
    """The norm of one layer between two spaces, whose orders it shares with the layers around it.

    Attributes:
        ends: The orders of inputs and outputs. Only one norm of a chain registers an order as its own, as a module
            that is registered twice does not survive ``torch.func.functional_call``.
    """

    def __init__(self, start: Order, end: Order, *, own: bool) -> None:
        super().__init__()
        self.ends = (start, end)
        if own:
            self.order = start

    def orders(self) -> tuple[Tensor, Tensor]:
        """The orders as they are now."""
        start, end = self.ends
        return start(), end()

    def lowest(self) -> float:
        """The lower end of the order of outputs."""
        return self.ends[1].low

    def attach(self, weight: Tensor) -> OperatorNorm:
        """The norm itself."""
        check_kernel(weight, same=self.ends[0] is self.ends[1])
        return self

    def measure(self, weight: Tensor) -> Tensor:
        """The upper bound, with gradients for the weight and the orders."""
        p, q = map(at_least_single, self.orders())
        return induced_bound(at_least_single(weight), 1 / p, 1 / q)
