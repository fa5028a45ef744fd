"""From an interval to the real line."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from flowplug._arguments import require_ints, require_numbers
from flowplug._errors import DomainError, ShapeError
from flowplug._precision import at_least_single
from flowplug._reading import known, transformed
from flowplug._transform import Transform


class Logit(Transform):
    r"""Maps numbers from the unit interval to the real line.

    .. math:: y = \log \frac{a}{1 - a}, \quad a = \alpha + (1 - 2 \alpha) x, \qquad
        \mathrm{ladj} = \sum \log \frac{1 - 2 \alpha}{a (1 - a)}

    With :math:`\alpha > 0` the data from 0 to 1 reach :math:`|y| = \log(1 / \alpha - 1)`, 2.9 for 0.05, and what is
    beyond comes from an interval that is a little longer, from :math:`-\alpha / (1 - 2 \alpha)` to as far above 1: all
    of it is accepted, so that samples, some of which lie outside of [0, 1], have a density; clamp them to look at.

    Numbers near the ends of the interval are few: in single precision those below the upper end have logits to 16.
    Where the sigmoid of a latent is rounded to an end, `inverse` returns the number next to it, whose logit is finite,
    with the log-det of the formula, :math:`\sum \log \sigma(y) \sigma(-y) / (1 - 2 \alpha)`; `forward` takes
    an end itself for a number next to it.

    Reference: Dinh, Sohl-Dickstein, Bengio, "Density Estimation Using Real NVP", ICLR 2017, section 4.1.

    Args:
        alpha: How far from the ends the logit is taken, in [0, 0.5).
        event_dim: Number of event dimensions, 3 for images ``(C, H, W)``.

    Raises:
        ValueError: ``alpha`` is outside of [0, 0.5).
        ShapeError: ``event_dim`` is below 1.
        DomainError: A number lies outside of the interval; on a GPU in train mode, the next pass says so.

    Example:
        >>> y, ladj = Logit(0.05)(torch.rand(5, 1, 8, 8))
        >>> y.shape, ladj.shape, bool((y.abs() < 2.945).all())
        (torch.Size([5, 1, 8, 8]), torch.Size([5]), True)
    """

    def __init__(self, alpha: float = 0.05, *, event_dim: int = 3) -> None:
        super().__init__()
        require_numbers("Logit", alpha=alpha)
        require_ints("Logit", event_dim=event_dim)
        if not 0 <= alpha < 0.5:
            raise ValueError(f"Logit(alpha=...) must be in [0, 0.5); got {alpha}")
        if event_dim < 1:
            raise ShapeError(f"Logit(event_dim=...) must be at least 1; got {event_dim}")
        self.alpha, self.event_dim = float(alpha), int(event_dim)
        self._slope = 1 - 2 * self.alpha
        self._low, self._high = -self.alpha / self._slope, 1 + self.alpha / self._slope
        self._inner = {dtype: self._inner_ends(dtype) for dtype in _DTYPES}

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        self._require_inside(x)
        single = at_least_single(x).clamp(*self._inner[x.dtype])
        log, log_rest = (share.log() for share in self._shares(single))
        ladj = self._sum(math.log(self._slope) - log - log_rest)
        return (log - log_rest).to(x.dtype), ladj.to(x.dtype)

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        single = at_least_single(y)
        x = ((torch.sigmoid(single) - self.alpha) / self._slope).to(y.dtype).clamp(*self._inner[y.dtype])
        ladj = self._sum(functional.logsigmoid(single) + functional.logsigmoid(-single) - math.log(self._slope))
        return x, ladj.to(y.dtype)

    def _shares(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both a and 1 - a, each right to its own last digits."""
        return self.alpha + self._slope * x, self.alpha + self._slope * (1 - x)

    def _sum(self, logs: Tensor) -> Tensor:
        return logs.flatten(logs.dim() - self.event_dim).sum(-1)

    def _inner_ends(self, dtype: torch.dtype) -> tuple[float, float]:
        """The numbers of a dtype next to the ends, whose logits are finite."""
        ends = []
        for number, end in enumerate((self._low, self._high)):
            x = torch.tensor(end or torch.finfo(dtype).tiny, dtype=dtype, device="cpu")
            while float(self._shares(at_least_single(x))[number]) <= 0:
                x = (x.view(_INTEGERS[x.itemsize]) - 1).view(dtype)  # one step towards 0
            ends.append(float(x))
        return ends[0], ends[1]

    def _require_inside(self, x: Tensor) -> None:
        name = type(self).__name__
        x = x.detach()
        inside = (x >= self._low) & (x <= self._high)
        message = f"{name}(alpha={self.alpha:g}) is defined from {self._low:.6g} to {self._high:.6g}, data from 0 to 1"
        if torch.compiler.is_compiling():
            torch._assert_async(inside.all(), f"{message}; the input holds others")
        elif self.training and x.is_cuda and not transformed():
            self._require_later(inside.all(), f"{message}; the input of the last pass held others", DomainError)
        elif known(inside.all()) is False:
            bad = (~inside).nonzero()
            first = tuple(bad[0].tolist())
            raise DomainError(
                f"{message}; got {len(bad)} other value(s), the first at index {first}, {float(x[first]):g}: scale "
                "pixels by their number of levels, as flowplug.Dequantize does"
            )

    def extra_repr(self) -> str:
        """Names alpha."""
        return f"{self.alpha:g}, event_dim={self.event_dim}"


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
