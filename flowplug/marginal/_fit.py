"""Splines from the rows of a table to normal scores, and how much of these to start with."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from flowplug._moments import nonzero, standardise, whitener
from flowplug.marginal._spline import Spline

LARGEST = 2.7  # the outermost normal score of a knot: 0.35 % of the rows lie beyond
ROWS_BEYOND = 8  # fewer do not settle a tail
PRIOR_ROWS = 4  # of a normal tail, in the company of those beyond
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
ROWS_TO_CHOOSE = 32  # fewer are standardised alone
MOST_FEATURES = 512  # that take part in a choice


def location_and_scale(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Medians and scales ``(F,)`` of ``rows: (N, F)``, that of a constant feature 1.

    The scale is the standard deviation of the normal distribution with the same outer quantiles, or, where these are
    equal, of the rows: heavy tails have no say.
    """
    at = _levels(len(rows), 3)
    low, middle, high = quantiles(rows.sort(0).values, at)
    deviation = standardise(rows)[1]  # 0 if that is rounding
    scale = torch.where(high > low, (high - low) / float(at[-1] - at[0]), deviation)
    return middle, nonzero(torch.where(deviation > 0, scale, 0))


def normal_scores(rows: Tensor, knots: int, gap: float) -> Spline:
    r"""Splines to normal scores through quantiles of ``rows: (N, F)`` of scale 1, their knots at `scores` from there.

    With few rows there are fewer quantiles, :math:`1 + 2 N^{1/3}` of them, as far out as eight rows lie beyond; the
    knots are on the splines through these. Quantiles are kept apart by ``gap``. The slope d of a tail is that of the
    largest likelihood,

    .. math:: d = \frac{\sqrt{z^2 m_1^2 + 4 m_2} - z m_1}{2 m_2} = \arg\max \sum_i \log d - \tfrac12 (z + d e_i)^2,

    for the mean :math:`m_1` and mean square :math:`m_2` of the distances :math:`e_i` of the N rows beyond the knot, and
    of four normal ones more. So the farthest row has a score of :math:`z + \sqrt{N + 4}` at most.
    """
    at = _levels(len(rows), min(knots, 1 + 2 * round(len(rows) ** (1 / 3))))
    x = quantiles(rows.sort(0).values, at).T
    width = x.diff().clamp(min=gap)
    x = from_middle(width) + x[:, x.shape[1] // 2, None]
    y = at.to(x).expand(x.shape)
    secant = y.diff() / width
    low, high = (_tail_slope(e, float(at[-1])) for e in (x[:, :1] - rows.T, rows.T - x[:, -1:]))
    spline = Spline(x, y, torch.cat([low, (secant[:, 1:] + secant[:, :-1]) / 2, high], 1))
    y = scores(knots).to(x).expand(len(x), -1)
    x, log_slope = spline.inverse(y.contiguous())
    return Spline(x, y, log_slope.exp())


def blended(spline: Spline, rows: Tensor, share: float) -> Spline:
    """A share of the splines, the rest the map that standardises the rows; that alone for a constant feature."""
    mean, deviation, _ = standardise(rows)
    mean, deviation = mean[:, None], deviation[:, None]
    constant, rest = deviation == 0, (1 - share) / nonzero(deviation)
    x = torch.where(constant, mean + spline.y, spline.x)
    y = torch.where(constant, spline.y, rest * (spline.x - mean) + share * spline.y)
    return Spline(x, y, torch.where(constant, 1.0, rest + share * spline.slope))


def best_share(rows: Tensor, knots: int, gap: float) -> float:
    """The share of `SHARES` after which an elliptical distribution fits best: by one half of the rows, to the other.

    Features that linear relations tie to each other lose them to scores of their own, and all share the spread of rows
    at large: either is worth more than the shapes of their distributions, or less.
    """
    features = rows.shape[1]
    if len(rows) < ROWS_TO_CHOOSE:
        return SHARES[0]
    if features == 1:
        return SHARES[-1]
    skipped = max(0, features - MOST_FEATURES) // 2
    rows = rows[:, skipped : skipped + MOST_FEATURES]
    fitted, judged = rows[::2], rows[1::2]
    spline = normal_scores(fitted, knots, gap)
    values = []
    for share in SHARES:
        blend = blended(spline, fitted, share)
        (seen, _), (new, log_slopes) = blend(fitted.T.contiguous()), blend(judged.T.contiguous())
        values.append(float(elliptical(seen.T, new.T) + log_slopes.sum(0).mean()))
    return SHARES[max(range(len(SHARES)), key=values.__getitem__)]


def elliptical(fitted: Tensor, judged: Tensor) -> Tensor:
    r"""Mean log-likelihood of rows, in nats, up to a number: whitened, their distance r from the centre is log-normal.

    .. math:: \log p(x) = \log |\det W| + \log \mathcal{N}(\log r; m, s^2) - F \log r, \qquad r = \|W (x - \mu)\|
    """
    mean, deviation, rows = standardise(fitted)
    white = whitener(rows.T @ rows / len(rows), len(rows)) / nonzero(deviation)
    seen, new = (((x - mean) @ white.T).norm(dim=1).clamp(min=1e-30).log() for x in (fitted, judged))
    spread = seen.std()
    density = -((new - seen.mean()) / spread).square() / 2 - spread.log() - fitted.shape[1] * new
    value: Tensor = density.mean() + torch.linalg.slogdet(white).logabsdet
    return value


def scores(knots: int) -> Tensor:
    """Where the knots of a start are, in normal scores, ``(K,)``: evenly, the middle one at 0."""
    return torch.linspace(-LARGEST, LARGEST, knots, dtype=torch.float64)


def from_middle(widths: Tensor) -> Tensor:
    """Knots ``(F, K)``, K odd, from the widths ``(F, K - 1)`` between them; the middle one is at 0."""
    knots = pad(widths.cumsum(1), (1, 0))
    return knots - knots[:, knots.shape[1] // 2, None]


def quantiles(ordered: Tensor, at: Tensor) -> Tensor:
    """Of the rising ``ordered: (N, F)``, those of these normal scores ``(K,)``, ``(K, F)``."""
    place = (torch.special.ndtr(at) * len(ordered) - 0.5).clamp(0, len(ordered) - 1)
    below = place.floor()
    part, index = (place - below).to(ordered)[:, None], below.long().to(ordered.device)
    lower, upper = ordered[index], ordered[(index + 1).clamp(max=len(ordered) - 1)]
    found: Tensor = lower + part * (upper - lower)
    return found


def _levels(rows: int, knots: int) -> Tensor:
    beyond = torch.tensor(min(ROWS_BEYOND / rows, 0.25), dtype=torch.float64)
    largest = min(LARGEST, -float(torch.special.ndtri(beyond)))
    return torch.linspace(-largest, largest, knots, dtype=torch.float64)


def _tail_slope(distance: Tensor, z: float) -> Tensor:
    """Slopes ``(F, 1)`` beyond a knot of the score z, for rows at distances ``(F, N)``, negative before it."""
    count = (distance > 0).sum(1, keepdim=True) + PRIOR_ROWS
    largest = distance.amax(1, keepdim=True).clamp(min=1)  # squares of distances may leave single precision
    part = distance.clamp(min=0) / largest
    # A standard normal is beyond z by h - z in the mean, with the mean square 1 + z^2 - z h, of its hazard h there.
    hazard = math.exp(-(z**2) / 2) / math.sqrt(math.pi / 2) / math.erfc(z / math.sqrt(2))
    first = (part.sum(1, keepdim=True) + PRIOR_ROWS * (hazard - z) / largest) / count
    second = (part.square().sum(1, keepdim=True) + PRIOR_ROWS * (1 + z * z - z * hazard) / largest / largest) / count
    ratio = z * first / second.sqrt() / 2
    return ((ratio.square() + 1).sqrt() - ratio) / second.sqrt() / largest
