"""flowplug's transforms as transforms of nflows.

`NflowsTransform` wraps any flowplug transform; the classes named after nflows' own build one from the arguments an
nflows user expects. They mix with nflows' transforms in `CompositeTransform`, `MultiscaleCompositeTransform` and
`Flow`. The directions of a flowplug transform are those of nflows, which runs one without a wrapper too, but does not
know its errors.

`from_nflows` goes the other way: any transform of nflows becomes a flowplug transform, and so runs in the other hosts.

All of this holds for glasflow, which has a copy of nflows inside: it is the host where nflows itself is missing; with
both, transforms and flows of either are accepted, and nflows is what the classes here are made from.
"""

from flowplug.hosts import reset
from flowplug_nflows._bridge import from_nflows
from flowplug_nflows._dense import DenseTransform
from flowplug_nflows._image import ImageFlow
from flowplug_nflows._residual import ResidualFlow, ResidualTransform
from flowplug_nflows._start import start
from flowplug_nflows._transform import NflowsTransform

__all__ = [
    "DenseTransform",
    "ImageFlow",
    "NflowsTransform",
    "ResidualFlow",
    "ResidualTransform",
    "from_nflows",
    "reset",
    "start",
]
