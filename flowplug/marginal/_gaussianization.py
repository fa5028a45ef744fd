"""Marginal Gaussianization: a monotone spline per feature that starts from data, then trains."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowplug._arguments import require_ints, require_numbers
from flowplug._moments import nonzero
from flowplug._precision import at_least_single, in_dtype
from flowplug._start import FromData
from flowplug._transform import Transform
from flowplug.marginal import _fit
from flowplug.marginal._events import event_of
from flowplug.marginal._spline import Spline

NARROWEST = 1e-3  # of the width of a piece at first, and of its height
SPREAD = 0.02  # scales, of tied values
MOST_CHANGE = 5.0  # of logarithms by training
MOST_ROWS = 1 << 18  # that a start looks at
MOST_KEPT = 1 << 17  # numbers that wait for more
GOLDEN = (math.sqrt(5) - 1) / 2


class MarginalGaussianization(FromData, Transform):
    r"""A monotone spline per feature that starts from the shapes of the data's distributions, then trains.

    .. math:: y_i = f_i(x_i), \qquad \mathrm{ladj} = \sum_i \log f_i'(x_i)

    The splines are rational-quadratic between their knots and straight beyond, with the inverse in closed form. They
    start from the first 256 rows met by `forward` in train mode (fewer of more than 512 features), in whatever units:
    from the first batch, or, with a `StartWarning`, from as many small ones as it takes. `start` takes rows by name, in
    any mode, some thousands rather than some hundreds, and `reset` goes back to the identity. The place is in front of
    a flow, where features are those of the data: a `Whitening` behind then sees distributions that are nearly normal.
    A residual flow so gains 1.8 nats on MiniBooNE and 1.2 on protein in equal time (examples/results/README.md).

    With a share of 1 the knots start at quantiles, which they map to those of a standard normal. Where features depend
    on each other more than on shapes of their own, as the pixels of a patch do, that bends what was straight. So the
    start goes a share of the way from the map that standardises each feature, in quarters: that after which an
    elliptical distribution, fitted to one half of the rows, gives the highest likelihood to the other (a quarter for
    fewer than 32 rows, all of the way for a single feature). Training counts by as much: with a share of 0 the map
    stays. Tied values are spread over a fiftieth of a standard deviation; a constant feature is centred and left at its
    scale; the slope of a tail is that of largest likelihood for the n rows beyond the knot, which so have scores of at
    most :math:`2.7 + \sqrt{n + 4}`.

    Buffers hold the start (saved, loaded, averaged, and broadcast by DDP), and parameters what training adds to the
    logarithms of widths, heights and slopes, from 0 to at most 5 times the share. Where training starts with `inverse`,
    as for a reverse KL divergence, the map does not start from data later, and a `StartWarning` says so.

    Reference: Chen, Gopinath, "Gaussianization", NeurIPS 2000; Durkan et al., "Neural Spline Flows", NeurIPS 2019,
    eqs. (4)-(8), for the pieces; Meng et al., "Gaussianization Flows", AISTATS 2020, for splines that train.

    Args:
        features: Width of the events, or their shape, or the first sizes of this, as channels of images: each entry of
            ``features`` has a spline, which the dimensions after these share.
        event_dim: Number of dimensions of an event; by default those of ``features``, and 3 for images.
        knots: Number of knots of each spline, odd; 2.7 standard deviations to either side at first.
        share: Of the way from standardising to normal scores, in [0, 1]; ``None`` chooses.

    Raises:
        ShapeError: A size is below 1, ``event_dim`` below the number of sizes, or an input has another shape.
        ValueError: ``knots`` is even or below 3, or ``share`` not in [0, 1].

    Example:
        >>> marginals, x = MarginalGaussianization(2, share=1.0), torch.randn(1000, 2).exp()
        >>> y, ladj = marginals(x)
        >>> bool((y - x.log()).abs().mean() < 0.1)
        True
        >>> MarginalGaussianization((1, 28, 28)).event_shape, MarginalGaussianization(3, event_dim=3).event_shape
        ((1, 28, 28), (3, None, None))
    """

    location: Tensor
    scale: Tensor
    strength: Tensor
    rows: Tensor
    start_widths: Tensor
    start_heights: Tensor
    start_slopes: Tensor
    start_shift: Tensor

    def __init__(
        self,
        features: int | Sequence[int],
        *,
        event_dim: int | None = None,
        knots: int = 25,
        share: float | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        shape, self.event_dim = event_of(name, features, event_dim)
        require_ints(name, knots=knots)
        if knots < 3 or knots % 2 == 0:
            raise ValueError(f"{name} needs an odd number of knots, at least 3; got {knots}")
        if share is not None:
            require_numbers(name, share=share)
            if not 0 <= share <= 1:
                raise ValueError(f"{name}(share=...) must be in [0, 1]; got {share}")
        self.event_shape = (*shape, *[None] * (self.event_dim - len(shape)))
        self._own = len(shape)
        self.features, self.knots, self.share = torch.Size(shape).numel(), knots, share
        self.rows_needed = max(64, min(256, MOST_KEPT // self.features))
        self._step = 2 * _fit.LARGEST / (knots - 1)
        self.register_buffer("location", torch.zeros(self.features))
        self.register_buffer("scale", torch.ones(self.features))
        # The share that was chosen: training changes as much of the map.
        self.register_buffer("strength", torch.ones(()))
        # Those met so far, while they are too few.
        self.register_buffer("rows", torch.zeros(self.rows_needed, self.features))
        # Logarithms of widths and heights, in `_step`, and of slopes: buffers start, parameters train from there.
        for part, width in {"widths": knots - 1, "heights": knots - 1, "slopes": knots}.items():
            self.register_buffer(f"start_{part}", torch.zeros(self.features, width))
            self.register_parameter(f"log_{part}", nn.Parameter(torch.zeros(self.features, width)))
        self.register_buffer("start_shift", torch.zeros(self.features, 1))
        self.shift = nn.Parameter(torch.zeros(self.features, 1))

    def extra_repr(self) -> str:
        """The event, the knots, and the share if it was given."""
        share = "" if self.share is None else f", share={self.share}"
        return f"{self.event_shape}, knots={self.knots}{share}"

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        self._meet(x)
        columns = (self._columns(x) - self._wide("location")) / self._wide("scale")
        most = torch.finfo(columns.dtype).max  # an infinity would have no place among the knots
        y, log_slopes = self._spline()(columns.clamp(-most, most))
        return self._events(y, x), self._ladj(log_slopes, x)

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        self._keep()
        x, log_slopes = self._spline().inverse(self._columns(y))
        return self._events(x * self._wide("scale") + self._wide("location"), y), -self._ladj(log_slopes, y)

    def _spline(self) -> Spline:
        """That of standardised features, in no less than single precision: knots are sums."""
        lengths = self._lengths(torch.cat([self._trained("widths"), self._trained("heights")]))
        x, y = _fit.from_middle(lengths).chunk(2)
        return Spline(x, y + self._changed("start_shift", self.shift), self._trained("slopes").exp())

    def _trained(self, part: str) -> Tensor:
        logs = at_least_single(getattr(self, f"log_{part}"))
        return self._changed(f"start_{part}", MOST_CHANGE * (logs / MOST_CHANGE).tanh())

    def _changed(self, start: str, change: Tensor) -> Tensor:
        strength, first = (at_least_single(self._steady(getattr(self, name))) for name in ("strength", start))
        return first + strength * at_least_single(change)

    def _lengths(self, logs: Tensor) -> Tensor:
        return self._step * (NARROWEST + (1 - NARROWEST) * logs.exp())

    def _logs(self, lengths: Tensor) -> Tensor:
        return ((lengths / self._step - NARROWEST) / (1 - NARROWEST)).clamp(min=NARROWEST).log()

    def _wide(self, name: str) -> Tensor:
        return at_least_single(self._steady(getattr(self, name)))[:, None]

    def _columns(self, x: Tensor) -> Tensor:
        """The values ``(F, N)`` of each feature, in no less than single precision."""
        return at_least_single(self._samples(x).movedim(1, 0).reshape(self.features, -1))

    def _samples(self, x: Tensor) -> Tensor:
        """The events as ``(B, F, S)``, with S values of a feature in each."""
        split = x.dim() - self.event_dim
        return x.reshape(x.shape[:split].numel(), self.features, x.shape[split + self._own :].numel())

    def _events(self, columns: Tensor, like: Tensor) -> Tensor:
        batch, _, values = self._samples(like).shape
        return in_dtype(columns.reshape(self.features, batch, values).movedim(1, 0).reshape(like.shape), like.dtype)

    def _ladj(self, log_slopes: Tensor, like: Tensor) -> Tensor:
        batch, _, values = self._samples(like).shape
        logs = log_slopes.reshape(self.features, batch, values).sum((0, 2)) - values * self._wide("scale").log().sum()
        return in_dtype(logs.reshape(like.shape[: like.dim() - self.event_dim]), like.dtype)

    def _take_in(self, rows: Tensor, seen: float) -> None:
        before, samples = round(seen), self._samples(rows)
        met, last = before + len(samples), before + len(samples) >= self.rows_needed
        one = of_each(samples, before)
        new = one if before and not last else all_of(samples)
        self._start_from(torch.cat([self.rows[:before].to(new), new]) if before else new)
        if last:
            self.rows.zero_()
        else:
            self.rows[before:met] = one

    def _start_from(self, values: Tensor) -> None:
        """Starts from values ``(N, F)``."""
        location, scale = _fit.location_and_scale(values)
        varying, scale = scale > 0, nonzero(scale)
        values = (values - location) / scale
        share = _fit.best_share(values[:, varying], self.knots, SPREAD) if self.share is None else self.share
        spline = _fit.blended(_fit.normal_scores(values, self.knots, SPREAD), values, share)
        at = _fit.scores(self.knots).to(values)
        identity, varying = (at, at, torch.ones_like(at)), varying[:, None]
        spline = Spline(*(torch.where(varying, part, same) for part, same in zip(spline, identity, strict=True)))
        middle = self.knots // 2
        self.location.copy_(location + scale * spline.x[:, middle])
        self.scale.copy_(scale)
        self.strength.fill_(share)
        self.start_widths.copy_(self._logs(spline.x.diff()))
        self.start_heights.copy_(self._logs(spline.y.diff()))
        self.start_slopes.copy_(spline.slope.log())
        self.start_shift.copy_(spline.y[:, middle, None])

    def _forget(self) -> None:
        for name, value in self.named_buffers():
            value.fill_(name in {"scale", "strength"})
        for parameter in self.parameters():
            parameter.zero_()


def of_each(samples: Tensor, before: int) -> Tensor:
    """One value ``(B, F)`` of each event in ``samples: (B, F, S)``, at places that differ from one to the next."""
    event = torch.arange(len(samples), device=samples.device)
    return samples[event, :, ((before + event) * GOLDEN % 1 * samples.shape[2]).long()]


def all_of(samples: Tensor) -> Tensor:
    """The values ``(N, F)`` in ``samples: (B, F, S)``, or as many as a start looks at."""
    batch, features, values = samples.shape
    if batch * values <= MOST_ROWS:
        return samples.movedim(2, 1).reshape(-1, features)
    # At random, the same in every start: every so many would be the same rows or columns of images.
    generator = torch.Generator().manual_seed(0)
    event, place = (
        torch.randint(high, (MOST_ROWS,), generator=generator, device="cpu").to(samples.device)
        for high in (batch, values)
    )
    return samples[event, :, place]
