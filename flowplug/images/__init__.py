"""Parts of flows on images, and two whole ones."""

from flowplug.images._logit import Logit as Logit
from flowplug.images._multiscale import MultiscaleTransform as MultiscaleTransform
from flowplug.images._patches import PatchTransform as PatchTransform
from flowplug.images._pixels import Dequantize as Dequantize
from flowplug.images._pixels import bits_per_dim as bits_per_dim
from flowplug.images._published import PublishedImageStack as PublishedImageStack
from flowplug.images._reshape import Reshape as Reshape
from flowplug.images._squeeze import Squeeze as Squeeze
from flowplug.images._stack import ImageStack as ImageStack
from flowplug.images._starts import ImageStart as ImageStart
from flowplug.images._starts import PatchStart as PatchStart
from flowplug.images._starts import PixelStart as PixelStart
