"""Which log-det a residual transform uses when none is asked for."""

from typing import Protocol

from torch import Tensor

from flowplug._branch import Branch
from flowplug._noise import Noise
from flowplug.logdet._exact import ExactLogDet
from flowplug.logdet._power_series import PowerSeries
from flowplug.logdet._terms import Geometric, Roulette


class LogDet(Protocol):
    """Evaluates a residual branch together with the log-det of ``x + g(x)``."""

    def __call__(self, branch: Branch, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """``g(x): (B, *event)`` and the log-det ``(B,)`` in nats, at ``x: (B, *event)``."""


EXACT_DIM = 32
EXACT_EVAL_DIM = 256


def default_logdet(size: int, *, training: bool) -> LogDet:
    """Exact while it is affordable, stochastic above.

    Args:
        size: Dimension D of the events.
        training: Train mode (a step's time decides) or eval mode (20 exact terms, as in the paper's evaluation).
    """
    if size <= (EXACT_DIM if training else EXACT_EVAL_DIM):
        return ExactLogDet()
    return PowerSeries() if training else PowerSeries(terms=Roulette(Geometric(0.5), exact=20))
