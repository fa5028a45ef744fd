"""flowplug's transforms as flows of normflows.

`NormflowsFlow` wraps any flowplug transform; `Residual` takes the arguments of ``normflows.flows.Residual``, so that an
existing model changes one import; `ResidualFlow` makes a whole model. The flows mix with normflows' in
`NormalizingFlow`, `ConditionalNormalizingFlow` and `MultiscaleFlow`. normflows' own `LipschitzMLP` is accepted as
network, with its bound computed from the weights in use; so is its `LipschitzCNN`.

A flowplug transform that is put straight into a model of normflows runs backwards, and no error can say so: both
libraries call their directions ``forward`` and ``inverse``, for opposite things, and the model asks for no more.

`from_normflows` goes the other way: any flow of normflows becomes a flowplug transform, and so runs in the other hosts.
"""

try:
    import normflows  # noqa: F401
except ImportError as error:
    raise ImportError("flowplug_normflows needs normflows: pip install 'flowplug[normflows]'") from error

import flowplug_normflows._networks  # noqa: F401 -- registers their bounds
from flowplug.hosts import reset
from flowplug_normflows._bridge import from_normflows
from flowplug_normflows._dense import Dense
from flowplug_normflows._flow import ResidualFlow
from flowplug_normflows._image import ImageFlow
from flowplug_normflows._residual import Residual
from flowplug_normflows._start import start
from flowplug_normflows._transform import NormflowsFlow

__all__ = ["Dense", "ImageFlow", "NormflowsFlow", "Residual", "ResidualFlow", "from_normflows", "reset", "start"]
