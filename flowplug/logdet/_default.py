"""Which log-det a residual transform uses when none is asked for."""

import math
from typing import Protocol

from torch import Tensor

from flowplug._noise import Noise
from flowplug.branch import Branch
from flowplug.logdet._exact import ExactLogDet
from flowplug.logdet._krylov import Krylov
from flowplug.logdet._lengths import Geometric
from flowplug.logdet._terms import Roulette


class LogDet(Protocol):
    """Evaluates a residual branch together with the log-det of ``x + g(x)``.

    Example:
        >>> branch = Branch.of(LipschitzMLP(2), None)
        >>> gx, ladj = ExactLogDet()(branch, torch.randn(5, 2), Noise())
        >>> gx.shape, ladj.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __call__(self, branch: Branch, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """``g(x): (B, *event)`` and the log-det ``(B,)`` in nats, at ``x: (B, *event)``."""


EXACT_DIM = 4
EXACT_DIM_CUDA, EXACT_SIZE_CUDA = 64, 2**15
EXACT_EVAL_DIM = 128


def default_logdet(x: Tensor, *, training: bool) -> LogDet:
    """Exact while it is affordable, stochastic above.

    In train mode the limit is where a step takes equally long. Time of `ExactLogDet` in units of the stochastic
    estimate, of which the roulette goes to 2 products and on (train) or to 8 and on (eval), for one block
    ``LipschitzMLP(D, (128,))``, 256 rows on one core or a GPU, an H200 (``examples/benchmarks/breakeven.py``):

    =============== ==== ==== ==== ==== ==== ==== ==== ====
    D               2    6    10   21   43   63   128  784
    =============== ==== ==== ==== ==== ==== ==== ==== ====
    training        0.7  1.1  1.5  3.9  11   13   39   840
    training on GPU 0.48 0.51 0.51 0.60 0.55 0.57 0.71
    eval            0.2  0.2  0.3  0.4  1.0  1.9  6.2  90
    eval on GPU     0.09 0.09 0.07 0.10 0.12 0.12 0.15
    =============== ==== ==== ==== ==== ==== ==== ==== ====

    A small product takes a GPU as long as a large one, so that few operations win; with 4,096 rows it is still 0.65 at
    D = 63, but 1.5 at D = 128, and at D = 48 1.9 for a `LipschitzCNN`, so images are left out. The gradient needs the
    Jacobians, though: with three hidden layers of 128, 512 rows and D = 63, a block keeps 120 MiB instead of 4. Batches
    that are larger are estimated.

    In eval mode exactness is worth more than time: the limit is where a row takes a quarter of a millisecond on a CPU.

    Args:
        x: The events ``(B, *event)``.
        training: Train mode, or eval mode.
    """
    size = math.prod(x.shape[1:])
    if training:
        few = x.is_cuda and x.dim() == 2 and size <= EXACT_DIM_CUDA and x.numel() <= EXACT_SIZE_CUDA
        return ExactLogDet() if few or size <= EXACT_DIM else Krylov()
    return ExactLogDet() if size <= EXACT_EVAL_DIM else Krylov(terms=Roulette(Geometric(0.5), exact=8))
