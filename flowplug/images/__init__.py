"""Parts of flows on images."""

from flowplug.images._patches import PatchTransform as PatchTransform
from flowplug.images._reshape import Reshape as Reshape
from flowplug.images._squeeze import Squeeze as Squeeze
