"""Layers: linear maps and convolutions whose operator norm cannot exceed a bound."""

from flowplug.lipschitz.layers._conv import LipschitzConv1d as LipschitzConv1d
from flowplug.lipschitz.layers._conv import LipschitzConv2d as LipschitzConv2d
from flowplug.lipschitz.layers._conv import LipschitzConv3d as LipschitzConv3d
from flowplug.lipschitz.layers._conv import conv_layer as conv_layer
from flowplug.lipschitz.layers._layer import Layer as Layer
from flowplug.lipschitz.layers._layer import LipschitzLayer as LipschitzLayer
from flowplug.lipschitz.layers._linear import LipschitzLinear as LipschitzLinear
from flowplug.lipschitz.layers._linear import dense_layer as dense_layer
