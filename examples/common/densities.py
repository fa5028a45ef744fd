"""Flows of every host, and transforms of flowplug, behind one face."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import nflows.distributions
import nflows.flows
import nflows.transforms
import normflows as nf
import torch
import zuko
from torch import Tensor, nn

import flowplug as fp
from flowplug import hosts

M = TypeVar("M", bound=nn.Module)
WIDEST = 4096
Call = Callable[[Any, Any], Tensor]  # of a flow with rows, or how many


class Model(nn.Module):
    """What is trained by likelihood: a module that returns that of each row, in nats."""

    def after_step(self) -> None:
        """What a host asks for after each step."""


class Density(Model):
    """A flow and how its host calls it; ``forward``, which DistributedDataParallel watches, is the log-likelihood.

    Example:
        >>> density = of_transform(fp.ResidualStack(3, 2), 3)
        >>> x = torch.randn(50, 3)
        >>> density.start(x)
        >>> density(x).shape, density.eval().sample(4).shape
        (torch.Size([50]), torch.Size([4, 3]))
    """

    def __init__(self, flow: nn.Module, *, log_prob: Call, sample: Call, round_trip: Call) -> None:
        super().__init__()
        # Functions of the flow, not of its methods: a copy of the module must call its own.
        self.flow, self._log_prob, self._sample, self._round_trip = flow, log_prob, sample, round_trip

    def forward(self, x: Tensor) -> Tensor:
        """Log-likelihoods ``(rows,)`` in nats of ``x: (rows, features)``."""
        return self._log_prob(self.flow, x)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Sets what starts from data ``(rows, features)``: every Whitening and ActNorm."""
        with hosts.starting(self.flow):
            self(x)
        self.after_step()

    def sample(self, rows: int) -> Tensor:
        """Draws ``(rows, features)``."""
        return self._sample(self.flow, rows)

    def round_trip(self, x: Tensor) -> Tensor:
        """``x`` to latent and back."""
        return self._round_trip(self.flow, x)

    def after_step(self) -> None:
        """Power iterations of normflows' own Lipschitz layers, which other flows have none of."""
        nf.utils.update_lipschitz(self.flow, 5)


def of_nflows(flow: nn.Module) -> Density:
    """A flow of nflows."""
    return Density(
        flow,
        log_prob=lambda flow, x: flow.log_prob(x),
        sample=lambda flow, rows: flow.sample(rows),
        round_trip=lambda flow, x: flow._transform.inverse(flow._transform(x)[0])[0],
    )


def of_normflows(model: nn.Module) -> Density:
    """A NormalizingFlow of normflows."""
    return Density(
        model,
        log_prob=lambda model, x: model.log_prob(x),
        sample=lambda model, rows: model.sample(rows)[0],
        round_trip=lambda model, x: model.forward(model.inverse(x)),
    )


def of_zuko(flow: nn.Module) -> Density:
    """An unconditional flow of zuko."""
    return Density(
        flow,
        log_prob=lambda flow, x: flow().log_prob(x),
        sample=lambda flow, rows: flow().sample((rows,)),
        round_trip=lambda flow, x: flow().transform.inv(flow().transform(x)),
    )


def of_transform(transform: fp.Transform, latent: int | Sequence[int]) -> Density:
    """A transform of flowplug, from data to latent, on a standard normal of this width, or of these sizes."""
    sizes = [latent] if isinstance(latent, int) else latent

    def sample(flow: fp.Transform, rows: int) -> Tensor:
        like = next(flow.parameters())
        return flow.inverse(torch.randn(rows, *sizes, dtype=like.dtype, device=like.device))[0]

    return Density(transform, log_prob=log_prob, sample=sample, round_trip=lambda flow, x: flow.inverse(flow(x)[0])[0])


def log_prob(transform: fp.Transform, x: Tensor) -> Tensor:
    r"""Log-likelihoods ``(rows,)`` in nats of ``x: (rows, *event)`` with a standard normal latent.

    .. math:: \log p(x) = \log |\det J_f(x)| - \|f(x)\|^2 / 2 - d \log(2 \pi) / 2
    """
    y, ladj = transform(x)
    value: Tensor = ladj + standard_normal(y)
    return value


def standard_normal(y: Tensor) -> Tensor:
    r"""Log-densities ``(rows,)`` in nats of ``y: (rows, *latent)``, :math:`-\|y\|^2 / 2 - d \log(2 \pi) / 2`."""
    y = y.flatten(1)
    return -y.square().sum(1) / 2 - y.shape[1] / 2 * math.log(2 * math.pi)


def nflows_density(features: int, layers: Sequence[nn.Module]) -> Density:
    """Layers of nflows, from data to latent, on a standard normal."""
    transform = nflows.transforms.CompositeTransform(layers)
    return of_nflows(nflows.flows.Flow(transform, nflows.distributions.StandardNormal([features])))


def normflows_density(features: int, layers: Sequence[nn.Module]) -> Density:
    """Layers of normflows, from data to latent (it wants them the other way round), on a standard normal."""
    base = nf.distributions.DiagGaussian(features, trainable=False)
    return of_normflows(nf.NormalizingFlow(base, list(reversed(layers))))


def zuko_density(features: int, layers: Sequence[nn.Module]) -> Density:
    """Layers of zuko, from data to latent, on a standard normal."""
    zeros, ones = torch.zeros(features), torch.ones(features)
    base = zuko.lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, zeros, ones, buffer=True)
    return of_zuko(zuko.lazy.Flow(layers, base))


@torch.no_grad()
def log_likelihoods(density: nn.Module, x: Tensor) -> Tensor:
    """The log-likelihood of each row in nats ``(rows,)``, in eval mode; the mode afterwards is that of before."""
    training = density.training
    density.eval()
    values = torch.cat([density(part) for part in torch.split(x, 1000)])
    density.train(training)
    return values


def size(module: nn.Module) -> int:
    """The number of parameters that are trained."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def nearest(make: Callable[[int], M], wanted: int) -> M:
    """The module ``make(hidden)`` of at most about so many parameters, by bisection of the width, below 4,096."""
    low, high = 1, 2
    while high < WIDEST and size(make(high)) <= wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(make(middle)) <= wanted else (low, middle)
    return make(low)
