"""Activations with Lipschitz constant 1."""

from flowplug.lipschitz.activations._activation import Activation as Activation
from flowplug.lipschitz.activations._activation import linearize as linearize
from flowplug.lipschitz.activations._sine import Sine as Sine
from flowplug.lipschitz.activations._sine_huber import SineHuber as SineHuber
from flowplug.lipschitz.activations._sorting import FullSort as FullSort
from flowplug.lipschitz.activations._sorting import GroupSort as GroupSort
from flowplug.lipschitz.activations._sorting import MaxMin as MaxMin
from flowplug.lipschitz.activations._swish import CLipSwish as CLipSwish
from flowplug.lipschitz.activations._swish import LipSwish as LipSwish
