"""Residual flows for nflows, normflows and zuko: the whole public API on one screen."""

from flowplug import testing as testing
from flowplug._errors import ContextError as ContextError
from flowplug._errors import DeviceError as DeviceError
from flowplug._errors import DtypeError as DtypeError
from flowplug._errors import FlowplugError as FlowplugError
from flowplug._errors import InverseNotAvailable as InverseNotAvailable
from flowplug._errors import LipschitzError as LipschitzError
from flowplug._errors import NonFiniteError as NonFiniteError
from flowplug._errors import NotConverged as NotConverged
from flowplug._errors import SecondDerivativeError as SecondDerivativeError
from flowplug._errors import ShapeError as ShapeError
from flowplug._noise import fixed_noise as fixed_noise
from flowplug._noise import no_logdet as no_logdet
from flowplug._norm import ActNorm as ActNorm
from flowplug._residual import ResidualTransform as ResidualTransform
from flowplug._transform import ComposedTransform as ComposedTransform
from flowplug._transform import InverseTransform as InverseTransform
from flowplug._transform import Transform as Transform
from flowplug.lipschitz._activations import LipSwish as LipSwish
from flowplug.lipschitz._activations import Sine as Sine
from flowplug.lipschitz._bound import LipschitzBound as LipschitzBound
from flowplug.lipschitz._bound import lipschitz_bound as lipschitz_bound
from flowplug.lipschitz._linear import LipschitzLinear as LipschitzLinear
from flowplug.lipschitz._mlp import LipschitzMLP as LipschitzMLP
from flowplug.lipschitz._norms import Gram as Gram
from flowplug.lipschitz._norms import InfNorm as InfNorm
from flowplug.logdet._default import LogDet as LogDet
from flowplug.logdet._exact import ExactLogDet as ExactLogDet
from flowplug.logdet._gradients import Autograd as Autograd
from flowplug.logdet._gradients import Neumann as Neumann
from flowplug.logdet._power_series import PowerSeries as PowerSeries
from flowplug.logdet._probes import Gaussian as Gaussian
from flowplug.logdet._probes import Rademacher as Rademacher
from flowplug.logdet._terms import Geometric as Geometric
from flowplug.logdet._terms import Poisson as Poisson
from flowplug.logdet._terms import Roulette as Roulette
from flowplug.logdet._terms import Truncated as Truncated
from flowplug.solvers._fixed_point import FixedPoint as FixedPoint

__version__ = "0.1.0"
