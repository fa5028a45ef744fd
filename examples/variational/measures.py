"""What draws of a flow are worth: by their weights, as proposals of a Markov chain, and where the target is."""

import math
import statistics
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from common.clock import seconds
from common.densities import size
from common.report import finite
from common.runs import Line
from common.trial import FAILURES
from variational.models import Sampler
from variational.targets import Target

CHUNK = 4_000  # draws in one pass
CHAINS = 100
ROUNDS = 3  # of draws, each timed
SEED = 2**31 + 1  # of no run


def share(log_w: Tensor) -> float:
    r"""The effective sample size of weighted draws as a share of them, :math:`(\sum w)^2 / n \sum w^2`."""
    log_w = log_w.double()
    return float((2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()) / len(log_w)


def exact_share(log_w: Tensor) -> float:
    r"""The same of log-weights ``(rows,)`` at exact draws, normalised ones: :math:`1 / E_p w`.

    Draws of the flow cannot tell a mode that it has lost; here it makes a share of 0.
    """
    return math.exp(math.log(len(log_w)) - float(log_w.double().logsumexp(0)))


class Evidence(NamedTuple):
    """An estimate of log Z, and its standard error by the delta method, both in nats."""

    log_z: float
    error: float


def evidence(log_w: Tensor) -> Evidence:
    r"""The logarithm of the mean weight, :math:`\log \frac1n \sum w \pm s_w / (\bar w \sqrt n)`."""
    log_w = log_w.double()
    log_z = float(log_w.logsumexp(0)) - math.log(len(log_w))
    return Evidence(log_z, float((log_w - log_z).exp().std()) / math.sqrt(len(log_w)))


class Chains(NamedTuple):
    """Markov chains: states ``(steps, chains, features)``, the log-weights of these, and how many proposals they took.

    ``accepted`` is a share of all proposals.
    """

    x: Tensor
    log_w: Tensor
    accepted: float


def metropolis(x: Tensor, log_w: Tensor, chains: int) -> Chains:
    r"""Independence Metropolis: as many chains, which accept a proposal with probability :math:`\min(1, w' / w)`.

    Args:
        x: Draws ``(rows, features)``, the first states and the proposals of all chains.
        log_w: Their log-weights ``(rows,)``.
        chains: How many, a divisor of the rows.
    """
    steps = len(x) // chains
    log_w = log_w.view(steps, chains)
    accept = torch.rand_like(log_w).log()
    kept = torch.arange(chains, device=x.device)
    rows, accepted = [kept], 0
    for step in range(1, steps):
        moves = accept[step] < log_w[step] - log_w.view(-1)[kept]
        kept = torch.where(moves, torch.arange(chains, device=x.device) + step * chains, kept)
        rows.append(kept)
        accepted += int(moves.sum())
    index = torch.stack(rows)
    return Chains(x[index], log_w.reshape(-1)[index], accepted / max((steps - 1) * chains, 1))


def effective(values: Tensor) -> float:
    r"""Effective samples of ``(steps, chains)`` by autocorrelation, for the mean of all.

    .. math:: n / \left( 1 + 2 \sum_t \rho_t \right)

    with correlations from within and between chains (Gelman et al. 2013), summed in pairs as long as these are positive
    and do not rise (Geyer 1992). Chains that disagree lower it; at most n log10(n), where they are anticorrelated.

    Example:
        >>> effective(torch.randn(1000, 4)) > 3000
        True
    """
    values = values.double()
    steps, chains = values.shape
    centred = values - values.mean(0)
    spectrum = torch.fft.rfft(centred, 2 * steps, dim=0).abs().square()
    covariance = torch.fft.irfft(spectrum, 2 * steps, dim=0)[:steps].mean(1) / steps
    within = covariance[0] * steps / (steps - 1)
    total = covariance[0] + (values.mean(0).var() if chains > 1 else 0.0)
    if not total > 0:
        return math.nan
    correlation = 1 - (within - covariance) / total
    pairs = correlation[: steps // 2 * 2].view(-1, 2).sum(1)
    positive = (pairs > 0).cumprod(0).bool()
    summed = float(pairs.cummin(0).values[positive].sum())
    count = steps * chains
    return count / max(2 * summed - 1, 1 / math.log10(count))


@torch.no_grad()
def measured(sampler: Sampler, target: Target, draws: int, exact: int, seed: int) -> Line:
    """What a trained flow is worth, None where it is not finite or a layer fails.

    Args:
        sampler: The flow; it is in eval mode afterwards, in which log-dets are exact.
        target: What it is to draw from.
        draws: Of the flow, in each of `ROUNDS` rounds.
        exact: Draws of the target, at which densities of the flow are looked up.
        seed: Of latent points and exact draws; torch's generator stays as it was.

    Returns:
        By name: reverse KL, the share of effective draws, these per CPU second, log Z less the truth and its standard
        error, acceptance and effective samples per CPU second of Metropolis, forward KL and the share by exact draws.
    """
    sampler.eval()
    device = next(sampler.parameters()).device
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        z = torch.randn(ROUNDS, draws, target.features).to(device)
        x_exact = target.exact(exact).to(device)
        parts, times = list[tuple[Tensor, Tensor]](), list[float]()
        sampler.weighted(z[0, :CHUNK])
        for noise in z:
            start = seconds(device)
            parts += [sampler.weighted(chunk) for chunk in torch.split(noise, CHUNK)]
            times.append(seconds(device) - start)
        x, log_w = (torch.cat(part) for part in zip(*parts, strict=True))
        taken, start = statistics.median(times), seconds(device)
        chains = metropolis(x, log_w, CHAINS)
        chained = seconds(device) - start + ROUNDS * taken
    functions = [*chains.x.unbind(2), chains.x.square().sum(2), chains.log_w]
    counted = min(effective(values) for values in functions)
    found = evidence(log_w)
    at_exact = log_weights_at(sampler, target, x_exact)
    line = {
        "reverse_kl": target.log_z - float(log_w.double().mean()),
        "ess": share(log_w),
        "draws_per_second": draws / taken,
        "ess_per_second": draws / taken * share(log_w),
        "log_z_error": found.log_z - target.log_z,
        "log_z_standard_error": found.error,
        "acceptance": chains.accepted,
        "chain_ess": counted / len(x),
        "chain_ess_per_second": counted / chained,
        "forward_kl": float(at_exact.double().mean()),
        "exact_ess": exact_share(at_exact),
    }
    return {key: finite(value) for key, value in line.items()} | {"parameters": size(sampler)}


def log_weights_at(sampler: Sampler, target: Target, x: Tensor) -> Tensor:
    """Normalised log-weights of exact draws ``(rows,)``; NaN of all where a layer fails."""
    with suppress(*FAILURES):
        log_q = torch.cat([sampler.log_prob(part) for part in torch.split(x, CHUNK)])
        return target.log_prob(x) - target.log_z - log_q
    return x.new_full((len(x),), math.nan)
