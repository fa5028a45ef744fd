"""Simulators and their priors; exact posteriors where they can be drawn from.

Two moons is as in Greenberg et al. (2019), SLCP as in Papamakarios et al. (2019); the simulators of the mixture and of
the linear Gaussian are sbi's own, with priors and scales as in Lueckmann et al. (2021).
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Uniform

TEST_ROWS = 10_000
TEST_SEED = 2**31  # of no run


@dataclass(frozen=True)
class Task:
    """A simulator.

    Args:
        prior: Of parameters ``(features,)``.
        simulate: Observations ``(rows, width)`` of parameters ``(rows, features)``.
        exact: Draws ``(count, features)`` from the posterior of one observation ``(width,)``; None where it is unknown.
    """

    prior: Distribution
    simulate: Callable[[Tensor], Tensor]
    exact: Callable[[Tensor, int], Tensor] | None = None

    def pairs(self, rows: int, seed: int) -> tuple[Tensor, Tensor]:
        """Parameters and observations; torch's generator stays as it was, which sbi's simulators draw from."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            theta = self.prior.sample((rows,))
            return theta, self.simulate(theta)


@dataclass(frozen=True)
class Problem:
    """A task with pairs to judge by, each ``(rows, ...)``, and exact posteriors of the first observations of these.

    Args:
        name: As in results.
        task: The simulator.
        simulations: To fit and to choose by.
        theta: Parameters.
        x: Observations.
        posteriors: Draws ``(observations, draws, features)``, none where they are unknown.
    """

    name: str
    task: Task
    simulations: int
    theta: Tensor
    x: Tensor
    posteriors: Tensor


def part_of_sbi(name: str) -> ModuleType:
    """A module of sbi.

    Raises:
        ImportError: sbi, or what this module needs, is not installed.
    """
    try:
        return importlib.import_module(f"sbi.{name}")
    except ImportError as error:
        raise ImportError(f"sbi.{name} cannot be imported ({error}): pip install 'flowplug[sbi]'") from error


def box(features: int, bound: float) -> Distribution:
    """Uniform in all features between these bounds."""
    ones = torch.ones(features)
    return Independent(Uniform(-bound * ones, bound * ones), 1)


def kept(draw: Callable[[int], Tensor], bound: float, count: int) -> Tensor:
    """So many draws of which every feature is within the bounds."""
    found = torch.empty(0)
    while len(found) < count:
        draws = draw(count)
        inside = draws[(draws.abs() <= bound).all(1)]
        found = torch.cat([found, inside]) if len(found) else inside
    return found[:count]


def crescent(rows: int) -> Tensor:
    """Noise ``(rows, 2)`` of two moons, a half ring."""
    angle, radius = math.pi * (torch.rand(rows) - 0.5), 0.1 + 0.01 * torch.randn(rows)
    return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)


def two_moons() -> Task:
    r"""A half ring at :math:`(-|\theta_1 + \theta_2|, \theta_2 - \theta_1) / \sqrt 2`: two of them in the posterior."""

    def simulate(theta: Tensor) -> Tensor:
        total, difference = theta.sum(1), theta[:, 1] - theta[:, 0]
        return crescent(len(theta)) + torch.stack([-total.abs(), difference], 1) / math.sqrt(2)

    def exact(x: Tensor, count: int) -> Tensor:
        # Noise and observation give the parameters but for the sign of their sum, by a map that keeps volumes.
        def draw(rows: int) -> Tensor:
            noise = crescent(rows)
            total, difference = noise[:, 0] - x[0], x[1] - noise[:, 1]
            total, difference = total[total >= 0], difference[total >= 0]
            total = total * (2 * torch.randint(2, total.shape) - 1)
            return torch.stack([total - difference, total + difference], 1) / math.sqrt(2)

        return kept(draw, 1.0, count)

    return Task(box(2, 1.0), simulate, exact)


def gaussian_mixture() -> Task:
    """A wide and a narrow Gaussian of the same mean, which is the parameter."""
    module = part_of_sbi("simulators.gaussian_mixture")
    scales = torch.tensor(module.SIM_PARAMS["mixture_scales"])

    def exact(x: Tensor, count: int) -> Tensor:
        return kept(lambda rows: x + scales[torch.randint(2, (rows, 1))] * torch.randn(rows, 2), 10.0, count)

    return Task(box(2, 10.0), module.gaussian_mixture, exact)


def linear_gaussian(features: int = 10, variance: float = 0.1) -> Task:
    """The parameters plus noise; all is Gaussian."""
    module = part_of_sbi("simulators.linear_gaussian")
    shift, covariance = torch.zeros(features), variance * torch.eye(features)
    prior = MultivariateNormal(shift, covariance)

    def exact(x: Tensor, count: int) -> Tensor:
        posterior = module.true_posterior_linear_gaussian_mvn_prior(x, shift, covariance, shift, covariance)
        draws: Tensor = posterior.sample((count,))
        return draws

    return Task(prior, lambda theta: module.linear_gaussian(theta, shift, covariance), exact)


def slcp() -> Task:
    """Four draws from a Gaussian, whose mean, scales and correlation are what the five parameters say."""

    def simulate(theta: Tensor) -> Tensor:
        first, second, correlation = theta[:, 2] ** 2, theta[:, 3] ** 2, theta[:, 4].tanh()
        noise = torch.randn(4, len(theta), 2)
        other = correlation * noise[..., 0] + (1 - correlation**2).sqrt() * noise[..., 1]
        draws = theta[:, :2] + torch.stack([first * noise[..., 0], second * other], -1)
        return draws.transpose(0, 1).flatten(1)

    return Task(box(5, 3.0), simulate)


TASKS: dict[str, Callable[[], Task]] = {
    "two-moons": two_moons,
    "gaussian-mixture": gaussian_mixture,
    "linear-gaussian": linear_gaussian,
    "slcp": slcp,
}


def load(name: str, simulations: int, observations: int, draws: int, device: torch.device) -> Problem:
    """The task of this name, as `Problem` says, with `TEST_ROWS` pairs.

    Raises:
        ImportError: sbi is not installed.
    """
    part_of_sbi("neural_nets")
    task = TASKS[name]()
    theta, x = task.pairs(TEST_ROWS, TEST_SEED)
    posteriors = theta.new_empty(0, draws, theta.shape[1])
    if task.exact is not None and observations:
        with torch.random.fork_rng():
            torch.manual_seed(TEST_SEED)
            posteriors = torch.stack([task.exact(row, draws) for row in x[:observations]])
    return Problem(f"{name}-{simulations}", task, simulations, theta.to(device), x.to(device), posteriors)
