"""Starts from data, of whole flows of normflows."""

from normflows import MultiscaleFlow, NormalizingFlow
from torch import Tensor

from flowplug.hosts import starting


def start(flow: NormalizingFlow | MultiscaleFlow, x: Tensor, context: Tensor | None = None) -> None:
    """Starts from data by name: whatever of flowplug in a flow starts from data does so from these rows, anew.

    One pass of ``log_prob`` goes through the flow as it is, in train or eval mode, with its layers of normflows: each
    `flowplug.MarginalGaussianization`, `flowplug.HistogramGaussianization`, `flowplug.Whitening` and `flowplug.ActNorm`
    starts from what the layers before it make of the rows, its parameters from 0. Others stay as they are. `reset`
    undoes it.

    Args:
        flow: The model, from data to latent through whatever layers.
        x: Data, ``(B, *event)``: as many rows as there are, or some thousands.
        context: Shape ``(B, context_features)``; the classes of a ``MultiscaleFlow``.

    Raises:
        TypeError: This is no model of normflows; of a flowplug transform, call its own ``start``.
        ShapeError: There are fewer than 2 rows.
        FlowplugError: As in ``log_prob``.

    Example:
        >>> from flowplug_normflows import ResidualFlow
        >>> flow = ResidualFlow(2, num_layers=2)
        >>> start(flow, 5 + 1e9 * torch.randn(1000, 2))
    """
    if not isinstance(flow, NormalizingFlow | MultiscaleFlow):
        raise TypeError(f"start takes a model of normflows; got {type(flow).__qualname__}")
    with starting(flow):
        flow.log_prob(x) if context is None else flow.log_prob(x, context)
