"""The estimators that examples/posteriors.py compares: sbi's own, the same with flowplug's in front, and pure ones.

Each is a builder ``(theta, x) -> estimator``, as sbi's ``NPE(density_estimator=...)`` takes it. All have about as many
parameters, by the width of sbi's networks. Mixtures were chosen on held-out simulations.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import nflows.distributions
import nflows.flows
import nflows.transforms
import torch
from torch import Tensor, nn

import flowplug as fp
import flowplug_nflows
import flowplug_zuko
from common.densities import Model, nearest
from flowplug import hosts
from posteriors.tasks import part_of_sbi

Builder = Callable[[Tensor, Tensor], nn.Module]  # of parameters and observations
Part = Callable[[int, int], fp.Transform]  # of features and context

LAYERS = 5  # of sbi's flows, as by default
WIDTH = 128  # of the hidden layer of a residual transform in front
PURE = 8  # residual transforms of a flow of nothing else
START_ROWS = 2_000


class Posterior(Model):
    """An estimator of sbi; ``forward`` is the log-density of parameters at observations."""

    def __init__(self, estimator: nn.Module) -> None:
        super().__init__()
        self.estimator: Any = estimator

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        """Log-densities ``(rows,)`` in nats of ``theta: (rows, features)`` at ``x: (rows, width)``."""
        return -cast(Tensor, self.estimator.loss(theta, x))

    def sample(self, x: Tensor, count: int) -> Tensor:
        """Draws ``(count, features)`` for one observation ``(width,)``."""
        draws: Tensor = self.estimator.sample((count,), x[None])[:, 0]
        return draws


@torch.no_grad()
def start(estimator: nn.Module, theta: Tensor, x: Tensor) -> None:
    """Starts what starts from data; else it would warn of the two rows on which NPE tries an estimator."""
    with hosts.starting(estimator):
        Posterior(estimator)(theta[:START_ROWS], x[:START_ROWS])


def plain(model: str, theta: Tensor, x: Tensor, hidden: int) -> nn.Module:
    """An estimator as sbi builds it."""
    builder = part_of_sbi("neural_nets").posterior_nn(model, hidden_features=hidden, num_transforms=LAYERS)
    return cast(nn.Module, builder(theta, x))


def zuko_front(model: str, layers: int, part: Part, theta: Tensor, x: Tensor, hidden: int) -> nn.Module:
    """An estimator of zuko's flows with fewer layers, and a transform behind the z-scores."""
    builder = part_of_sbi("neural_nets").posterior_nn(model, hidden_features=hidden, num_transforms=layers)
    estimator = builder(theta, x)
    transform = part(theta[0].numel(), x[0].numel())
    estimator.net.transform.transforms.insert(1, flowplug_zuko.ZukoTransform(transform))
    return cast(nn.Module, estimator)


def nflows_front(model: str, layers: int, part: Part, theta: Tensor, x: Tensor, hidden: int) -> nn.Module:
    """An estimator of nflows' flows with fewer layers, and a transform behind the z-scores.

    The flow of sbi's estimator is the base of another flow, as nflows has no public list of a flow's layers.
    """
    options = {"z_score_theta": "none", "z_score_x": "none", "hidden_features": hidden, "num_transforms": layers}
    base = part_of_sbi("neural_nets").posterior_nn(model, **options)(theta, x).net
    return of_nflows(base, part(theta[0].numel(), x[0].numel()), theta, x)


def of_nflows(base: nn.Module, transform: fp.Transform, theta: Tensor, x: Tensor) -> nn.Module:
    """An estimator: z-scores of both sides, the transform, and the base."""
    utils, estimators = part_of_sbi("utils"), part_of_sbi("neural_nets.estimators")
    layers = [utils.standardizing_transform(theta), flowplug_nflows.NflowsTransform(transform)]
    flow = nflows.flows.Flow(nflows.transforms.CompositeTransform(layers), base, utils.standardizing_net(x))
    return cast(nn.Module, estimators.NFlowsFlow(flow, input_shape=theta[0].shape, condition_shape=x[0].shape))


def nflows_pure(theta: Tensor, x: Tensor, hidden: int) -> nn.Module:
    """Residual transforms alone in an estimator of nflows' flows."""
    stack = residual_dense(PURE, hidden, theta[0].numel(), x[0].numel())
    return of_nflows(nflows.distributions.StandardNormal([theta[0].numel()]), stack, theta, x)


def zuko_pure(theta: Tensor, x: Tensor, hidden: int) -> nn.Module:
    """Residual transforms alone in an estimator of zuko's flows."""
    utils, estimators = part_of_sbi("utils"), part_of_sbi("neural_nets.estimators")
    flow = flowplug_zuko.ResidualFlow(theta[0].numel(), x[0].numel(), transforms=PURE, hidden_features=(hidden,))
    shapes = {"input_shape": theta[0].shape, "condition_shape": x[0].shape}
    return cast(nn.Module, estimators.ZukoFlow(flow, utils.standardizing_net(x), **shapes))


def residual_dense(transforms: int, hidden: int, features: int, context: int) -> fp.Transform:
    """Whitening, dense and residual transforms in turn."""
    return fp.ResidualStack(features, transforms, (hidden,), context_features=context)


def residual(transforms: int, hidden: int, features: int, context: int) -> fp.Transform:
    """ActNorm and residual transforms in turn."""
    parts: list[fp.Transform] = []
    for _ in range(transforms):
        g = fp.LipschitzMLP(features, (hidden,), context_features=context)
        parts += [fp.ActNorm(features), fp.ResidualTransform(g)]
    return fp.ComposedTransform(*parts)


def dense(features: int, _: int) -> fp.Transform:
    """Whitening and a dense transform."""
    linear = fp.DenseTransform(features, activation=None, init=fp.ScaledIdentity())
    return fp.ComposedTransform(fp.Whitening(features), linear)


def marginal(features: int, _: int) -> fp.Transform:
    """Splines of the parameters, one by one: what a prior with edges asks for."""
    return fp.MarginalGaussianization(features)


HOSTS = {  # how flowplug's come in front, and sbi's name of the flow
    "zuko-nsf": (zuko_front, "zuko_nsf"),
    "zuko-maf": (zuko_front, "zuko_maf"),
    "nflows-nsf": (nflows_front, "nsf"),
    "nflows-maf": (nflows_front, "maf"),
}
MIXTURES: dict[str, tuple[int, Part]] = {  # layers of sbi's that are left, and what is in front of them
    "+dense": (LAYERS, dense),
    "+marginal": (LAYERS, marginal),
    "+residual": (LAYERS - 3, partial(residual, 2, WIDTH)),
    "+residual+dense": (LAYERS - 3, partial(residual_dense, 2, WIDTH)),
}
MODELS: dict[str, Callable[[Tensor, Tensor, int], nn.Module]] = (
    {host: partial(plain, model) for host, (_, model) in HOSTS.items()}
    | {
        host + mixture: partial(front, model, layers, part)
        for host, (front, model) in HOSTS.items()
        for mixture, (layers, part) in MIXTURES.items()
    }
    | {"zuko-residual": zuko_pure, "nflows-residual": nflows_pure}
)
PLAIN = {host + mixture: host for host in HOSTS for mixture in MIXTURES} | {  # what each is judged against
    "zuko-residual": "zuko-nsf",
    "nflows-residual": "nflows-nsf",
}
CHOSEN_FROM = ("", "+dense", "+marginal", "+residual+dense")
DEFAULTS = tuple(host + mixture for host in ("zuko-nsf", "nflows-nsf") for mixture in CHOSEN_FROM)


def builder(name: str, parameters: int) -> Builder:
    """What sbi's ``NPE(density_estimator=...)`` takes: builds the model of this name, with about so many parameters."""

    def build(theta: Tensor, x: Tensor) -> nn.Module:
        estimator = nearest(partial(MODELS[name], theta, x), parameters)
        start(estimator, theta, x)
        return estimator

    return build
