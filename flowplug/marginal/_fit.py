"""Splines from the rows of a table to normal scores, and how much of these to start with."""

import math
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn.functional import pad

from flowplug._moments import nonzero, standardise, whitener
from flowplug.marginal._spline import Spline

LARGEST = 2.7  # the outermost normal score of a knot: 0.35 % of the rows lie beyond
ROWS_BEYOND = 8  # fewer do not settle a tail
PRIOR_ROWS = 4  # of a normal tail, in the company of those beyond
OUTLIERS = 10.0  # scales from the median, where what is farther counts as if it were there
UNITS = 16  # of rounding, that two knots are apart at least
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
ROWS_TO_CHOOSE = 32  # fewer start a quarter of the way
MOST_TO_CHOOSE = 1 << 12, 512  # rows and features that take part in a choice


def location_and_scale(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Medians and scales ``(F,)`` of ``rows: (N, F)``; the scale of a constant feature is 0.

    That is the standard deviation of the normal distribution with the same quartiles, or, where these are equal, the
    same outer quantiles, or else that of the rows: neither outliers nor most kinds of heavy tails have a say.
    """
    ordered, outer = rows.sort(0).values, _largest(len(rows))
    quartile = -NormalDist().inv_cdf(0.25)
    at = torch.tensor([-outer, -quartile, 0.0, quartile, outer], dtype=torch.float64, device="cpu")
    lowest, low, middle, high, highest = quantiles(ordered, at)
    deviation = standardise(rows)[1]  # 0 if that is rounding
    scale = torch.where(highest > lowest, (highest - lowest) / (2 * outer), deviation)
    scale = torch.where(high > low, (high - low) / (2 * quartile), scale)
    return middle, torch.where(deviation > 0, scale, 0)


def normal_scores(rows: Tensor, knots: int, spread: float) -> Spline:
    r"""Splines to normal scores through quantiles of ``rows: (N, F)`` of scale 1, their knots at `scores` from there.

    With few rows there are fewer quantiles, :math:`1 + 2 N^{1/3}` of them, as far out as eight rows lie beyond; the
    knots are on the splines through these. Tied values are spread evenly over the width ``spread``. The slope d of a
    tail is that of the largest likelihood,

    .. math:: d = \frac{\sqrt{z^2 m_1^2 + 4 m_2} - z m_1}{2 m_2} = \arg\max \sum_i \log d - \tfrac12 (z + d e_i)^2,

    for the mean :math:`m_1` and mean square :math:`m_2` of the distances :math:`e_i` of the N rows beyond the knot, and
    of four normal ones more. So the farthest row has a score of :math:`z + \sqrt{N + 4}` at most.
    """
    largest = _largest(len(rows))
    count = min(knots, 1 + 2 * round(len(rows) ** (1 / 3)))
    at = torch.linspace(-largest, largest, count, dtype=torch.float64, device="cpu")
    x = quantiles(untied(rows.sort(0).values, spread), at).T
    width = x.diff().clamp(min=spread / knots)
    x = from_middle(width) + x[:, x.shape[1] // 2, None]
    y = at.to(x).expand(x.shape)
    secant = y.diff() / width
    low, high = (_tail_slope(e, largest) for e in (x[:, :1] - rows.T, rows.T - x[:, -1:]))
    spline = Spline(x, y, torch.cat([low, (secant[:, 1:] + secant[:, :-1]) / 2, high], 1))
    y = scores(knots).to(x).expand(len(x), -1)
    x, log_slope = spline.inverse(y.contiguous())
    return Spline(from_middle(x.diff()) + x[:, knots // 2, None], y, log_slope.exp())


def blended(spline: Spline, rows: Tensor, share: float) -> Spline:
    """A share of the splines; the rest is the map that standardises the rows but for outliers."""
    near = rows.clamp(-OUTLIERS, OUTLIERS)
    rest = (1 - share) / nonzero(near.std(0, correction=0))[:, None]
    y = rest * (spline.x - near.mean(0)[:, None]) + share * spline.y
    return Spline(spline.x, y, rest + share * spline.slope)


def best_share(rows: Tensor, knots: int, spread: float) -> float:
    """The share of `SHARES` after which an elliptical distribution of either half of the rows fits the other best.

    Features that linear relations tie to each other lose them to scores of their own, and all share the spread of rows
    at large: either is worth more than the shapes of their distributions, or less. Outliers have no say in a fit, but
    where they are judged. The halves are drawn at random, the same in every start. No feature may be constant.
    """
    most_rows, most_features = MOST_TO_CHOOSE
    skipped = max(0, rows.shape[1] - most_features) // 2
    rows = rows[:, skipped : skipped + most_features]
    if len(rows) < ROWS_TO_CHOOSE:
        return SHARES[1]
    if rows.shape[1] <= 1:
        return SHARES[-1]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0), device="cpu")[:most_rows]
    halves = rows[order.to(rows.device)].chunk(2)
    values = [0.0] * len(SHARES)
    for fitted, judged in (halves, halves[::-1]):
        near = fitted.clamp(-OUTLIERS, OUTLIERS)
        spline = normal_scores(fitted, knots, spread)
        for i, share in enumerate(SHARES):
            blend = blended(spline, fitted, share)
            (seen, _), (new, log_slopes) = blend(near.T.contiguous()), blend(judged.T.contiguous())
            values[i] += float(elliptical(seen.T, new.T) + log_slopes.sum(0).mean())
    return max(zip(values, SHARES, strict=True), key=lambda pair: -math.inf if math.isnan(pair[0]) else pair[0])[1]


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
    half = torch.linspace(0, LARGEST, knots // 2 + 1, dtype=torch.float64, device="cpu")
    return torch.cat([-half[1:].flip(0), half])


def from_middle(widths: Tensor) -> Tensor:
    """Knots ``(F, K)``, K odd, from the widths ``(F, K - 1)`` between them; the middle one is at 0.

    Summed outwards, as narrow ones near the middle would lose their digits to wide ones beyond. Those that are lost to
    rounding far out count as somewhat more, so that knots rise.
    """
    half = widths.shape[1] // 2
    left, right = _rising_sums(widths[:, :half].flip(1)), _rising_sums(widths[:, half:])
    return torch.cat([-left.flip(1), pad(right, (1, 0))], 1)


def _rising_sums(widths: Tensor) -> Tensor:
    least = UNITS * torch.finfo(widths.dtype).eps * widths.detach().cumsum(1)
    return torch.maximum(widths, least).cumsum(1)


def untied(ordered: Tensor, spread: float) -> Tensor:
    """The rising ``ordered: (N, F)``, with equal values spread evenly over this width around their value."""
    columns = ordered.T.contiguous()
    first, last = torch.searchsorted(columns, columns), torch.searchsorted(columns, columns, right=True)
    place = torch.arange(columns.shape[1], device=columns.device)
    part = (2 * place + 1 - first - last).to(columns) / (2 * (last - first)).to(columns)
    return (columns + spread * part).sort(1).values.T


def quantiles(ordered: Tensor, at: Tensor) -> Tensor:
    """Of the rising ``ordered: (N, F)``, those of these normal scores ``(K,)``, ``(K, F)``."""
    place = (torch.special.ndtr(at) * len(ordered) - 0.5).clamp(0, len(ordered) - 1)
    below = place.floor()
    part, index = (place - below).to(ordered)[:, None], below.long().to(ordered.device)
    lower, upper = ordered[index], ordered[(index + 1).clamp(max=len(ordered) - 1)]
    found: Tensor = lower + part * (upper - lower)
    return found


def _largest(rows: int) -> float:
    return min(LARGEST, -NormalDist().inv_cdf(min(ROWS_BEYOND / rows, 0.2)))


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
