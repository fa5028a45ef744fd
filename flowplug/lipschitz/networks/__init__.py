"""Networks of bounded layers that serve as residual branch, with context."""

from flowplug.lipschitz.networks._cnn import LipschitzCNN as LipschitzCNN
from flowplug.lipschitz.networks._densenet import LipschitzDenseNet as LipschitzDenseNet
from flowplug.lipschitz.networks._mlp import LipschitzMLP as LipschitzMLP
from flowplug.lipschitz.networks._network import LipschitzNetwork as LipschitzNetwork
