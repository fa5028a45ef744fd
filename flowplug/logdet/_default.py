"""Which log-det a residual transform uses when none is asked for."""

import math
from typing import Protocol

from torch import Tensor

from flowplug._noise import Noise
from flowplug._reading import mapped
from flowplug.branch import Branch
from flowplug.logdet._exact import ExactLogDet
from flowplug.logdet._krylov import Krylov
from flowplug.logdet._lengths import Geometric
from flowplug.logdet._terms import Converged, Roulette


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


EXACT_DIM = 8
EXACT_DIM_CUDA, EXACT_SIZE_CUDA = 64, 2**15
EXACT_EVAL_DIM = 128
# Made once, as the compiler takes strategies from where it finds them.
_EXACT, _KRYLOV, _CONVERGED = ExactLogDet(), Krylov(), Krylov(terms=Converged(1e-4))
_IMAGES = Krylov(terms=Roulette(Geometric(0.75, share=0.5), exact=4, group=4))


def default_logdet(x: Tensor, size: int, *, training: bool) -> LogDet:
    r"""Exact while it is affordable, stochastic above.

    In train mode the limit is where a step takes equally long: on CPUs about :math:`K^3 = 64 D`, as determinants take
    :math:`K^3` steps and products are as long as D; K is D itself, or the width of a narrower layer. On GPUs, where a
    small product takes as long as a large one, it is far up, but not for images; large batches are estimated there, as
    the gradient of an exact log-det keeps the matrices: docs/benchmarks.md, "Exact or estimated log-dets". In eval mode
    exactness is worth more than time: the limit is where a row takes a quarter of a millisecond on a CPU. Above it no
    length is left to chance: a row's estimate moves with x without jumps, and no weights enlarge its rounding. Inside
    torch.func.vmap it is exact.

    Batches of images are small, and a length that half a batch shares is most of the noise of a step: there 4 products
    and, for an eighth of the rows, more, in groups of 4 (docs/benchmarks.md, "Noise of gradients on images").

    Args:
        x: The events ``(B, *event)``.
        size: The K of the matrices whose determinant is taken, of `flowplug.branch.Branch.core_size`.
        training: Train mode, or eval mode.
    """
    if mapped():  # in which nothing may be drawn
        return _EXACT
    if training:
        few = x.is_cuda and x.dim() == 2 and size <= EXACT_DIM_CUDA and len(x) * size <= EXACT_SIZE_CUDA
        if few or size**3 <= EXACT_DIM**2 * math.prod(x.shape[1:]):
            return _EXACT
        return _KRYLOV if x.dim() == 2 else _IMAGES
    return _EXACT if size <= EXACT_EVAL_DIM else _CONVERGED
