"""Decorrelation that starts from data."""

from typing import Any

import torch
from torch import Tensor

from flowplug._arguments import require_ints
from flowplug._errors import ShapeError
from flowplug._factors import Factorization, Factors, logabsdet_of
from flowplug._moments import merge, nonzero, standardise, whitener
from flowplug._precision import at_least_single, full_precision
from flowplug._reading import hidden
from flowplug._start import FromData
from flowplug._transform import Transform


class Whitening(FromData, Transform):
    r"""An affine map, without parameters, that decorrelates and standardises the data it starts from.

    .. math:: y = (\lambda I + (1 - \lambda) R)^{-1/2} S^{-1} (x - \mu), \qquad
        \mathrm{ladj} = \log |\det \partial y / \partial x|

    with the mean, standard deviations S (a diagonal matrix) and correlation R of the first rows met by `forward` in
    train mode, in whatever units, at least 64 and two for each feature: of the first batch, or, with a `StartWarning`,
    of as many small ones as it takes, each counted before it is mapped. (A Gaussian fitted to 2 D rows is D / 8 nats
    behind the best; more rows, by `start`, come nearer.) The shrinkage :math:`\lambda` is the oracle-approximating
    one: near 0 for many rows, near 1, which changes scales only, where rows are too few to tell directions apart.
    `start` takes the rows by name, in any mode, and `reset` goes back to the identity. A constant feature is centred
    and left at its scale; one row gives no scale.

    The statistics are kept in buffers (saved, loaded, averaged, and broadcast by DDP). Where training starts with
    `inverse`, as for a reverse KL divergence, the map does not start from data later, and a `StartWarning` says so. Put
    a `DenseTransform` behind it to train the map: from this start, and on scales of 1, it learns sooner.

    Reference: Chen, Wiesel, Eldar, Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", IEEE Transactions on
    Signal Processing 58, 2010, eq. (23), without its terms in 2 / D, as in scikit-learn.

    Args:
        features: Width D of the events.

    Raises:
        ShapeError: ``features`` is below 1, or an input has another width.

    Example:
        >>> whitening = Whitening(2)
        >>> y, ladj = whitening(5 + torch.randn(1000, 2) * torch.tensor([1.0, 3.0]))
        >>> bool((y.T @ y / 1000 - torch.eye(2)).abs().max() < 0.05)
        True
    """

    event_dim = 1
    mean: Tensor
    weight: Tensor
    spread: Tensor
    correlation: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        require_ints("Whitening", features=features)
        if features < 1:
            raise ShapeError(f"Whitening needs at least 1 feature; got {features}")
        self.event_shape = (features,)
        self.rows_needed = max(64, 2 * features)
        # The map is mean and weight; inverse and log-det follow from the values these have at the time.
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("weight", torch.eye(features))
        # What the next batch of a start is merged with.
        self.register_buffer("spread", torch.zeros(features))
        self.register_buffer("correlation", torch.zeros(features, features))
        self._factors = Factorization(transposed=True)

    def extra_repr(self) -> str:
        """The width."""
        return str(self.mean.numel())

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        self._meet(x)
        # Weights as large as the data are alike cost half precision all of its digits.
        with full_precision(x):
            y = (x - self._steady(self.mean)) @ self._steady(self.weight)
        return y, self._ladj(y)

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        self._keep()
        rows, factors = y.reshape(-1, y.shape[-1]), self._kept_factors()
        if factors is None:
            matrix = at_least_single(self._steady(self.weight).T)
            rows = torch.linalg.solve_ex(matrix, rows.to(matrix.dtype).T)[0].T.to(y.dtype)
        else:
            rows = factors.solve(rows)
        x = rows.reshape(y.shape) + self._steady(self.mean)
        return x, -self._ladj(x)

    def _ladj(self, x: Tensor) -> Tensor:
        factors = self._kept_factors()
        value = logabsdet_of(at_least_single(self.weight.T)) if factors is None else factors.logabsdet
        # Hosts add to log-dets in place: every sample gets an entry of its own.
        return value.to(x.dtype).expand(x.shape[:-1]).clone()

    def _kept_factors(self) -> Factors | None:
        """Those of the transposed weight; ``None`` where no values are to be compared.

        That is while compiling, under vmap over weights, and in training on a GPU, which would be waited for.
        """
        if torch.compiler.is_compiling() or hidden(self.weight) or (self.training and self.weight.is_cuda):
            return None
        return self._factors(self.weight)

    def _take_in(self, rows: Tensor, seen: float) -> None:
        count = seen + len(rows)
        before = self.mean.to(rows.dtype), self.spread.to(rows.dtype)
        mean, std, scores = standardise(rows)
        mean, std, (first, second, between) = merge(*before, mean, std, len(rows) / count)
        correlation = (
            first.outer(first) * self.correlation
            + second.outer(second) * (scores.T @ scores / len(rows))
            + between.outer(between)
        )
        self.mean.copy_(mean)
        self.spread.copy_(std)
        self.correlation.copy_(correlation)
        if count >= 2:
            self.weight.copy_(whitener(correlation, count) / nonzero(std)[:, None])

    def _forget(self) -> None:
        for zero in (self.mean, self.spread, self.correlation):
            zero.zero_()
        self.weight.copy_(torch.eye(len(self.weight), device=self.weight.device))

    def _upgrade(self, state: dict[str, Any], prefix: str) -> None:
        for derived in ("inverse_weight", "log_det"):
            del state[prefix + derived]
        state[f"{prefix}spread"] = torch.zeros_like(state[f"{prefix}mean"])
        state[f"{prefix}correlation"] = torch.zeros_like(state[f"{prefix}weight"])
