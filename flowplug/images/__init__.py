"""Parts of flows on images."""

from flowplug.images._logit import Logit as Logit
from flowplug.images._multiscale import MultiscaleTransform as MultiscaleTransform
from flowplug.images._pixels import Dequantize as Dequantize
from flowplug.images._pixels import bits_per_dim as bits_per_dim
from flowplug.images._reshape import Reshape as Reshape
from flowplug.images._squeeze import Squeeze as Squeeze
