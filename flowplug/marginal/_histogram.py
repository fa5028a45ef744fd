"""Normal scores of values on a grid: a smoothed histogram of every feature, which starts from data and stays."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flowplug._arguments import require_ints, require_numbers
from flowplug._memory import Memory
from flowplug._precision import at_least_single, full_precision, in_dtype
from flowplug._reading import transformed
from flowplug._start import FromData
from flowplug._transform import Transform
from flowplug.marginal import _polya
from flowplug.marginal._events import event_of

MOST_ROWS = 65280  # that counts stand for: the most of bfloat16 that float16 holds, so that no cast overflows
CHUNK = 1 << 18  # numbers that are counted at a time
FEWEST_TO_TELL = 8  # whether values lie on a lattice


class HistogramGaussianization(FromData, Transform):
    r"""Maps dequantised values on a grid to normal scores by a smoothed histogram of each, fixed, without parameters.

    .. math:: y_i = \Phi^{-1}(F_i(x_i)), \qquad \mathrm{ladj} = \sum_i \log F_i'(x_i) - \log \varphi(y_i)

    F is the distribution function of a histogram with ``levels`` equal cells between ``low`` and ``high``, linear on
    each, of the first 256 rows met by `forward` in train mode or, better, of those given by `start`, some thousands.
    Data of K levels (grey levels, counts, rounded measurements) belong on it dequantised: with ``levels=K``,
    :math:`x = (k + u) / K` for k = 0, ..., K - 1 and u uniform in [0, 1), new in every pass. Without this noise they
    have no density; a `StartWarning` tells such data by their lattice. Few rows may be given to `start` several times,
    each with other noise, which a `Whitening` behind it needs: with one, 12,000 images of MNIST, given four times,
    start at 1.42 bits per dimension on new images.

    The mass of a cell is a product over halvings of the grid. One at depth j gives a half, with :math:`c_h` of the c
    rows that fell on the whole, the share :math:`(c_h + a_j / 2) / (c + a_j)`, where :math:`a_j = 0.3\, j^2`: a Polya
    tree, which leans towards neighbours where rows are few. (Where ``levels`` is no power of two, halves that stick out
    of the grid count for less.) Beyond either end lies half a row, :math:`1 / (2 n + 4)` of the mass after n rows;
    there the map goes on linearly, with its mean slope between the ends: a bijection of the reals, continuous and
    strictly increasing, finite and invertible far beyond the grid. Before any row it is the identity.

    The counts are kept in a buffer (saved, loaded, averaged, and broadcast by DDP), from which all else follows. As y
    is rounded, too, an inverse is right to that rounding over the slope of the map, which is small in cells of little
    mass. Where training starts with `inverse`, the map does not start from data later, and a `StartWarning` says so.

    Reference: Chen, Gopinath, "Gaussianization", NeurIPS 2000; Ferguson, "Prior Distributions on Spaces of Probability
    Measures", Annals of Statistics 2, 1974; Lavine, "Some Aspects of Polya Tree Distributions for Statistical
    Modelling", Annals of Statistics 20, 1992.

    Args:
        features: Width of the events, or the leading sizes of the event: each of their entries has a histogram of its
            own, as each pixel for ``(1, 28, 28)``.
        levels: Number of cells.
        low: Where the first cell begins.
        high: Where the last cell ends.
        event_dim: ``None`` for as many dimensions as ``features`` has sizes. Further ones share the histograms:
            ``HistogramGaussianization(3, event_dim=3)`` has one for each channel of an image.

    Raises:
        ShapeError: A size of ``features`` or ``event_dim`` is too small, or an input has another shape.
        ValueError: There are fewer than 2 levels, or ``low`` is not below ``high``.

    Example:
        >>> scores = HistogramGaussianization((1, 2, 2), levels=16)
        >>> grey = torch.randint(0, 16, (5000, 1, 2, 2)).clamp(max=9)
        >>> x = (grey + torch.rand(grey.shape)) / 16
        >>> scores.start(x)
        >>> y, ladj = scores(x)
        >>> bool(y.mean().abs() < 0.05) and bool((y.std() - 1).abs() < 0.05)
        True
    """

    counts: Tensor
    rows_needed = 256  # counts to 256 are whole numbers in bfloat16, too

    def __init__(
        self,
        features: int | Sequence[int],
        *,
        levels: int = 256,
        low: float = 0.0,
        high: float = 1.0,
        event_dim: int | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        shape, self.event_dim = event_of(name, features, event_dim)
        require_ints(name, levels=levels)
        require_numbers(name, low=low, high=high)
        if levels < 2:
            raise ValueError(f"{name}(levels=...) must be at least 2; got {levels}")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"{name} needs finite low < high; got {low} and {high}")
        self.event_shape = (*shape, *[None] * (self.event_dim - len(shape)))
        self.levels, self.low, self.high = levels, float(low), float(high)
        # How many rows of each entry fell on each cell; several values in a row share its one.
        self.register_buffer("counts", torch.zeros(math.prod(shape), levels))
        self._memory: Memory[_polya.Tables] = Memory()

    def extra_repr(self) -> str:
        """The event."""
        return str(self.event_shape)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        self._meet(x)
        with full_precision(x):
            tables, values = self._tables(), self._values(x)
            inside = values.clamp(self.low, self.high)
            beyond = values - inside
            scaled = self._in_cells(inside)
            cell = self._cell(scaled)
            at = tables.at(cell)
            part = scaled - cell
            from_below, from_above = at.below + part * at.mass, at.above + (1 - part) * at.mass
            # Near 1 a share of the mass has lost the digits that tell the tail: what counts is that of the nearer end.
            upper = from_above < from_below
            score = torch.special.ndtri(torch.where(upper, from_above, from_below))
            score = torch.where(upper, -score, score)
            log_slope = torch.where(beyond == 0, at.log_density + _half_square(score), tables.slope.log())
            y = score + tables.slope * beyond
            # No row yet. Asked of the counts, so that averages with a model that has not started are lawful, too.
            return self._results(torch.where(tables.empty, values, y), torch.where(tables.empty, 0, log_slope), x)

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        self._keep()
        with full_precision(y):
            tables, values = self._tables(), self._values(y)
            score = torch.clamp(values, -tables.end, tables.end)
            beyond, upper = values - score, score > 0
            mass = torch.special.erfc(torch.where(upper, score, -score) / math.sqrt(2)) / 2
            cell = tables.cell_of(mass.detach(), upper)
            at = tables.at(cell)
            part = torch.where(upper, 1 - (mass - at.above) / at.mass, (mass - at.below) / at.mass)
            # Rounding would carry it far into the next cell, where mass begins; the derivative does not know of it.
            part = part + (part.clamp(0, 1) - part).detach()
            log_slope = torch.where(beyond == 0, at.log_density + _half_square(score), tables.slope.log())
            x = self.low + (cell + part) * self._width + beyond / tables.slope
            return self._results(torch.where(tables.empty, values, x), torch.where(tables.empty, 0, -log_slope), y)

    @property
    def _width(self) -> float:
        return (self.high - self.low) / self.levels

    def _values(self, x: Tensor) -> Tensor:
        """The entries as ``(B, E, S)``, S values with one histogram, in no less than single precision."""
        split, entries = x.dim() - self.event_dim, len(self.counts)
        batch, event = math.prod(x.shape[:split]), math.prod(x.shape[split:])  # symbols, too
        return at_least_single(x).reshape(batch, entries, event // entries)

    def _results(self, values: Tensor, logs: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        dtype, batch = self.counts.dtype, like.shape[: like.dim() - self.event_dim]
        return in_dtype(values, dtype).reshape(like.shape), in_dtype(logs.sum((1, 2)), dtype).reshape(batch)

    def _in_cells(self, values: Tensor) -> Tensor:
        return (values - self.low) * (self.levels / (self.high - self.low))

    def _cell(self, scaled: Tensor) -> Tensor:
        return scaled.detach().clamp(0, self.levels - 1).long()

    def _tables(self) -> _polya.Tables:
        counts, width = self.counts, self._width
        # To look whether they are still the same reads the device, for which no step of a training waits.
        if torch.compiler.is_compiling() or transformed() or (self.training and counts.is_cuda):
            return _polya.tables(counts, width)
        return self._memory([counts], width, lambda: _polya.tables(counts, width))

    def _take_in(self, rows: Tensor, seen: float) -> None:
        values = self._values(rows)
        self._look_at(values)
        entries, shared = values.shape[1:]
        first = self.levels * torch.arange(entries, device=rows.device)[:, None]
        counts = at_least_single(self.counts).clone()
        for chunk in torch.split(values, max(1, CHUNK // (entries * shared))):
            index = self._cell(self._in_cells(chunk)) + first
            counts += torch.bincount(index.flatten(), minlength=counts.numel()).reshape(counts.shape) / shared
        self.counts.copy_(counts * min(1, MOST_ROWS / (seen + len(rows))))

    def _look_at(self, values: Tensor) -> None:
        """Says what a user should know of rows that do not fit the grid."""
        values = values[: max(1, CHUNK // values[0].numel())]
        outside = float(((values < self.low) | (values > self.high)).float().mean())
        name = type(self).__name__
        if outside > 0.01:
            self._say(
                f"{name}: {outside:.0%} of the values lie outside of its grid, from {self.low:g} to {self.high:g}, and "
                "count for its first and last cell: choose low and high so that it holds the data"
            )
        elif values.numel() >= FEWEST_TO_TELL and any(map(self._on_lattice, [values] * 2, [0, 1])):
            self._say(
                f"{name}: all values lie on one point of each cell, as if not dequantised: such data have no density, "
                "and log-likelihoods mean nothing. Add noise that fills the cells, new in every pass: for integers k "
                f"from 0 to {self.levels - 1}, x = {self.low:g} + (k + torch.rand(k.shape)) * "
                f"{self.high - self.low:g} / {self.levels}"
            )

    def _on_lattice(self, values: Tensor, less: int) -> bool:
        steps = (values - values.flatten()[0]) * ((self.levels - less) / (self.high - self.low))
        return bool(((steps - steps.round()).abs() < 1e-3).all())

    def _forget(self) -> None:
        self.counts.zero_()


def _half_square(score: Tensor) -> Tensor:
    """Minus the logarithm of the normal density."""
    return score.square() / 2 + math.log(2 * math.pi) / 2
