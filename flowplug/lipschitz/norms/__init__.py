"""Norms: how linear maps, and networks of them, are measured and kept within a bound."""

from flowplug.lipschitz.norms._gram import Gram as Gram
from flowplug.lipschitz.norms._induced import InducedNorm as InducedNorm
from flowplug.lipschitz.norms._inf_norm import InfNorm as InfNorm
from flowplug.lipschitz.norms._inf_norm import OneNorm as OneNorm
from flowplug.lipschitz.norms._learned_order import LearnedOrder as LearnedOrder
from flowplug.lipschitz.norms._network_norm import NetworkNorm as NetworkNorm
from flowplug.lipschitz.norms._operator_norm import OperatorNorm as OperatorNorm
from flowplug.lipschitz.norms._path_norm import PathNorm as PathNorm
from flowplug.lipschitz.norms._power_iteration import PowerIteration as PowerIteration
from flowplug.lipschitz.norms._svd import SVD as SVD
