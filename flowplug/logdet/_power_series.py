"""The power series of the log-det, with Hutchinson's trace estimator."""

from dataclasses import dataclass

from torch import Tensor

from flowplug._branch import Branch, linearize
from flowplug._noise import Noise
from flowplug.logdet._gradients import Gradient, Neumann
from flowplug.logdet._probes import Probes, Rademacher
from flowplug.logdet._terms import Geometric, Roulette, Terms


@dataclass(frozen=True)
class PowerSeries:
    r"""The stochastic log-det of Residual Flows, from vector-Jacobian products alone.

    .. math:: \log\det(I + J) = \sum_{k=1}^{\infty} \frac{(-1)^{k+1}}{k} \operatorname{tr} J^k
              \approx \sum_{k=1}^{n} \frac{(-1)^{k+1} c_k}{k} v^T J^k v

    With `Roulette` terms the value *and* its gradient are unbiased, in train and eval mode, for any per-sample weights
    of the loss. The cost is one evaluation of g and n products, whatever the dimension. One series length is drawn per
    call and shared by the batch. See `Geometric` for when the variance is finite.

    Reference: Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling", NeurIPS 2019,
    eqs. (6) and (8).

    Args:
        terms: `Truncated` (biased) or `Roulette`.
        probes: `Rademacher` or `Gaussian`.
        gradient: `Neumann` (Theorem 2) or `Autograd`.

    Example:
        >>> logdet = PowerSeries(terms=Roulette(Geometric(0.3), exact=4), probes=Rademacher(samples=2))
        >>> transform = ResidualTransform(LipschitzMLP(100), logdet=logdet)
    """

    terms: Terms = Roulette(Geometric(0.5), exact=2)  # noqa: RUF009 -- frozen
    probes: Probes = Rademacher()  # noqa: RUF009
    gradient: Gradient = Neumann()  # noqa: RUF009

    def __call__(self, branch: Branch, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """``g(x): (B, *event)`` and the estimate ``(B,)`` in nats."""
        y, vjp = linearize(branch, x)
        weights = self.terms.draw(noise.generator("cpu"))
        if not weights:
            # No term was drawn; a zero that keeps its graph lets a loss of log-dets alone be differentiated.
            return y, 0 * y.flatten(1).sum(1)
        total = x.new_zeros(len(x))
        for v in self.probes.draw(x, noise.generator(x.device)):
            total = total + self.gradient(vjp, v, weights)
        return y, total / self.probes.samples
