"""flowplug's transforms as lazy transforms of zuko.

`ZukoTransform` wraps any flowplug transform; the classes named after zuko's own build one from the arguments a zuko
user expects. They mix with zuko's transforms in `Flow`, and invert by ``.inv`` like these. Without a wrapper a flowplug
transform is refused when the flow is called, as zuko calls it with a context in place of its input.

`from_zuko` goes the other way: any lazy transform of zuko becomes a flowplug transform, and so runs in the other hosts.
"""

try:
    import zuko  # noqa: F401
except ImportError as error:
    raise ImportError("flowplug_zuko needs zuko: pip install 'flowplug[zuko]'") from error

from flowplug.hosts import reset
from flowplug_zuko._base import StandardNormal
from flowplug_zuko._bridge import from_zuko
from flowplug_zuko._dense import DenseFlow, DenseTransform
from flowplug_zuko._image import ImageFlow
from flowplug_zuko._residual import ResidualFlow, ResidualTransform
from flowplug_zuko._start import start
from flowplug_zuko._transform import BoundTransform, ZukoTransform

__all__ = [
    "BoundTransform",
    "DenseFlow",
    "DenseTransform",
    "ImageFlow",
    "ResidualFlow",
    "ResidualTransform",
    "StandardNormal",
    "ZukoTransform",
    "from_zuko",
    "reset",
    "start",
]
