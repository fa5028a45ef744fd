"""Dense flows: unconstrained square matrices, trained by the relative gradient, and invertible activations."""

from flowplug.dense._activations import SmoothLeakyReLU as SmoothLeakyReLU
from flowplug.dense._activations import TanhLinear as TanhLinear
from flowplug.dense._conv import CircularConv2d as CircularConv2d
from flowplug.dense._conv import DenseConv1x1 as DenseConv1x1
from flowplug.dense._gradients import Affine as Affine
from flowplug.dense._gradients import DenseGradient as DenseGradient
from flowplug.dense._gradients import Euclidean as Euclidean
from flowplug.dense._gradients import Relative as Relative
from flowplug.dense._gradients import TransposedRelative as TransposedRelative
from flowplug.dense._init import ScaledIdentity as ScaledIdentity
from flowplug.dense._transform import DenseTransform as DenseTransform
from flowplug.dense._values import Deferred as Deferred
from flowplug.dense._values import DenseValue as DenseValue
from flowplug.dense._values import ExactValue as ExactValue
