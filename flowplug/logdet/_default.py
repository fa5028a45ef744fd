"""Which log-det a residual transform uses when none is asked for."""

from typing import Protocol

from torch import Tensor

from flowplug._branch import Branch
from flowplug._noise import Noise
from flowplug.logdet._exact import ExactLogDet
from flowplug.logdet._krylov import Krylov
from flowplug.logdet._terms import Geometric, Roulette


class LogDet(Protocol):
    """Evaluates a residual branch together with the log-det of ``x + g(x)``."""

    def __call__(self, branch: Branch, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """``g(x): (B, *event)`` and the log-det ``(B,)`` in nats, at ``x: (B, *event)``."""


EXACT_DIM = 4
EXACT_EVAL_DIM = 128


def default_logdet(size: int, *, training: bool) -> LogDet:
    """Exact while it is affordable, stochastic above.

    In train mode the limit is where a step takes equally long. CPU time of `ExactLogDet` in units of the stochastic
    estimate, of which the roulette goes to 2 products and on (train) or to 8 and on (eval), for one block
    ``LipschitzMLP(D, (128,))`` and 256 rows on one core (``examples/benchmarks/breakeven.py``):

    ======== ==== ==== ==== ==== ==== ==== ==== ====
    D        2    6    10   21   43   63   128  784
    ======== ==== ==== ==== ==== ==== ==== ==== ====
    training 0.7  1.1  1.5  3.9  11   13   39   840
    eval     0.2  0.2  0.3  0.4  1.0  1.9  6.2  90
    ======== ==== ==== ==== ==== ==== ==== ==== ====

    In eval mode exactness is worth more than time: the limit is where a row takes a quarter of a millisecond.

    Args:
        size: Dimension D of the events.
        training: Train mode, or eval mode.
    """
    if size <= (EXACT_DIM if training else EXACT_EVAL_DIM):
        return ExactLogDet()
    return Krylov() if training else Krylov(terms=Roulette(Geometric(0.5), exact=8))
