"""Which log-det a residual transform uses when none is asked for."""

import math
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from flowplug._noise import Noise
from flowplug._reading import mapped
from flowplug.branch import Branch
from flowplug.logdet._exact import ExactLogDet
from flowplug.logdet._krylov import Krylov
from flowplug.logdet._lengths import Geometric
from flowplug.logdet._probes import Rademacher
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
_SMALL = Roulette(Geometric(0.75, share=0.5), exact=2, group=4)
_CONVERGED_IMAGES = Krylov(terms=Converged(1e-3), probes=Rademacher(samples=4))
_IMAGES, _UNTRACED = Krylov(terms=_SMALL), Krylov(terms=_SMALL, control=None)


def default_logdet(branch: Branch, x: Tensor, *, training: bool) -> LogDet:
    r"""Exact while it is affordable, stochastic above.

    In train mode the limit is where a step takes equally long: on CPUs about :math:`K^3 = 64 D`, as determinants take
    :math:`K^3` steps and products are as long as D; K is D itself, or the width of a narrower layer. On GPUs, where a
    small product takes as long as a large one, it is far up, but not for images; large batches are estimated there, as
    the gradient of an exact log-det keeps the matrices: docs/benchmarks.md, "Exact or estimated log-dets". In eval mode
    exactness is worth more than time: the limit is where a row takes a quarter of a millisecond on a CPU. Above it no
    length is left to chance: a row's estimate moves with x without jumps, and no weights enlarge its rounding. Inside
    torch.func.vmap it is exact.

    Batches of images are small, and lengths that all of their rows share make most of the noise of a step: there rows
    share them in groups of 4. The exact trace of a convolutional network takes more time than it is worth beside what
    one batch differs from another by (docs/benchmarks.md, "Noise of gradients on images"). In eval mode the noise is
    that of the probe, so that images have 4 of them, and their trace (docs/benchmarks.md, "Evaluation of image flows").

    Args:
        branch: g.
        x: The events ``(B, *event)``.
        training: Train mode, or eval mode.
    """
    if mapped():  # in which nothing may be drawn
        return _EXACT
    return _choice(branch, x.shape[1:], rows=x.shape[0], cuda=x.is_cuda, training=training)


def describe_default(branch: Branch, event: Sequence[int], *, cuda: bool, training: bool) -> str:
    """What `default_logdet` is for events of these sizes."""
    few, many = (_choice(branch, event, rows=rows, cuda=cuda, training=training) for rows in (1, EXACT_SIZE_CUDA + 1))
    if few is many:
        return f"{few} (chosen)"
    return f"{few} to {EXACT_SIZE_CUDA // branch.core_size(event)} rows, {many} beyond (chosen)"


def _choice(branch: Branch, event: Sequence[int], *, rows: int, cuda: bool, training: bool) -> LogDet:
    size = branch.core_size(event)
    if training:
        few = cuda and len(event) == 1 and size <= EXACT_DIM_CUDA and rows * size <= EXACT_SIZE_CUDA
        if few or size**3 <= EXACT_DIM**2 * math.prod(event):
            return _EXACT
        on_images = _IMAGES if branch.trace_pays else _UNTRACED
        return _KRYLOV if len(event) == 1 else on_images
    if size <= EXACT_EVAL_DIM:
        return _EXACT
    return _CONVERGED if len(event) == 1 else _CONVERGED_IMAGES
