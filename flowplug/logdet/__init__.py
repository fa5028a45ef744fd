"""Estimators of log|det(I + J)|: one axis a file, combined by keyword."""

from flowplug.logdet._control import Control as Control
from flowplug.logdet._control import ExactTrace as ExactTrace
from flowplug.logdet._default import LogDet as LogDet
from flowplug.logdet._default import default_logdet as default_logdet
from flowplug.logdet._exact import ExactLogDet as ExactLogDet
from flowplug.logdet._krylov import Krylov as Krylov
from flowplug.logdet._lengths import Certified as Certified
from flowplug.logdet._lengths import Geometric as Geometric
from flowplug.logdet._lengths import Length as Length
from flowplug.logdet._lengths import Poisson as Poisson
from flowplug.logdet._neumann import Neumann as Neumann
from flowplug.logdet._power_series import Autograd as Autograd
from flowplug.logdet._power_series import PowerSeries as PowerSeries
from flowplug.logdet._probes import Gaussian as Gaussian
from flowplug.logdet._probes import Orthogonal as Orthogonal
from flowplug.logdet._probes import Probes as Probes
from flowplug.logdet._probes import Rademacher as Rademacher
from flowplug.logdet._recompute import Recompute as Recompute
from flowplug.logdet._recurrence import Recurrence as Recurrence
from flowplug.logdet._series import Gradient as Gradient
from flowplug.logdet._series import Series as Series
from flowplug.logdet._terms import Converged as Converged
from flowplug.logdet._terms import Roulette as Roulette
from flowplug.logdet._terms import Terms as Terms
from flowplug.logdet._terms import Truncated as Truncated
