"""Control variates: parts of the log-det that are known exactly and need no probe."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from flowplug.branch import Linearization


class Control(Protocol):
    """Replaces the first term of a series.

    Example:
        >>> linear = Branch.of(LipschitzMLP(2), None).linearize(torch.randn(5, 2))
        >>> ExactTrace()(linear).shape
        torch.Size([5])
    """

    def __call__(self, linear: Linearization) -> Tensor | None:
        r"""The exact :math:`\operatorname{tr} J`, ``(B,)``, with its graph; ``None`` where it is too dear."""


@dataclass(frozen=True)
class ExactTrace:
    r"""The exact first term, :math:`\operatorname{tr} J` in place of :math:`v^T J v`, where the network knows it.

    `LipschitzMLP` does with up to two hidden layers, at no more than the cost of a product:
    :math:`\operatorname{tr}(W_2 D W_1) = d^T \operatorname{diag}(W_1 W_2)` is linear in the slopes d of one hidden
    layer, and bilinear for two; so does `LipschitzCNN` without preactivation, if the kernel between two hidden layers
    is one pixel, at the cost of a convolution with that, and its gradient at that of two products. The first term
    causes most of the noise of a trace estimate (docs/benchmarks.md, "What the exact trace is worth"). Without effect
    for other networks.

    Example:
        >>> logdet = PowerSeries(control=ExactTrace())
    """

    def __call__(self, linear: Linearization) -> Tensor | None:
        """The trace, ``(B,)``, or ``None``."""
        return linear.trace()
