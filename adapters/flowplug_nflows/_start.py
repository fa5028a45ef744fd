"""Starts from data, of whole flows of nflows."""

from torch import Tensor

from flowplug.hosts import starting
from flowplug_nflows._host import Distribution, flow_classes


def start(flow: Distribution, x: Tensor, context: Tensor | None = None) -> None:
    """Starts from data by name: whatever of flowplug in a flow starts from data does so from these rows, anew.

    One pass of ``log_prob`` goes through the flow as it is, in train or eval mode, with its layers of nflows: each
    `flowplug.MarginalGaussianization`, `flowplug.HistogramGaussianization`, `flowplug.Whitening` and `flowplug.ActNorm`
    starts from what the layers before it make of the rows, its parameters from 0. Others stay as they are. `reset`
    undoes it.

    Args:
        flow: The flow, from data to latent through whatever layers.
        x: Data, ``(B, *event)``: as many rows as there are, or some thousands.
        context: Shape ``(B, context_features)``.

    Raises:
        TypeError: This is no flow of nflows; of a flowplug transform, call its own ``start``.
        ShapeError: There are fewer than 2 rows.
        FlowplugError: As in ``log_prob``.

    Example:
        >>> from flowplug_nflows import ResidualFlow
        >>> flow = ResidualFlow(features=2, hidden_features=32, num_layers=4, num_blocks_per_layer=2)
        >>> start(flow, 5 + 1e9 * torch.randn(1000, 2))
    """
    if not isinstance(flow, flow_classes()):
        raise TypeError(f"start takes a flow of nflows; got {type(flow).__qualname__}")
    with starting(flow):
        flow.log_prob(x, context)
