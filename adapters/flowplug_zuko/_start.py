"""Starts from data, of whole flows of zuko."""

from torch import Tensor
from zuko.lazy import LazyDistribution

from flowplug.hosts import starting


def start(flow: LazyDistribution, x: Tensor, c: Tensor | None = None) -> None:
    """Starts from data by name: whatever of flowplug in a flow starts from data does so from these rows, anew.

    One pass of ``log_prob`` goes through the flow as it is, in train or eval mode, with its transforms of zuko: each
    `flowplug.MarginalGaussianization`, `flowplug.HistogramGaussianization`, `flowplug.Whitening` and `flowplug.ActNorm`
    starts from what the transforms before it make of the rows, its parameters from 0. Others stay as they are. `reset`
    undoes it.

    Args:
        flow: The lazy flow, from data to latent through whatever transforms.
        x: Data, ``(*batch, *event)``: as many rows as there are, or some thousands.
        c: Shape ``(*batch, context)``.

    Raises:
        TypeError: This is no lazy flow of zuko; of a flowplug transform, call its own ``start``.
        ShapeError: There are fewer than 2 rows.
        FlowplugError: As in ``log_prob``.

    Example:
        >>> from flowplug_zuko import ResidualFlow
        >>> flow = ResidualFlow(2, transforms=2)
        >>> start(flow, 5 + 1e9 * torch.randn(1000, 2))
    """
    if not isinstance(flow, LazyDistribution):
        raise TypeError(f"start takes a lazy flow of zuko; got {type(flow).__qualname__}")
    with starting(flow):
        flow(c).log_prob(x)
