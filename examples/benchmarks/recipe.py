"""Compares recipes for residual flows at equal CPU time, on validation rows: what the defaults were chosen by.

Each recipe changes one thing of the default. Measured are the validation log-likelihood, and the share of its Lipschitz
bound that a trained block uses: the mean norm of the Jacobian of g over the rows, divided by the bound, in its norm.

    python examples/benchmarks/recipe.py
    python examples/benchmarks/recipe.py --data FILE.npz --seconds 100 --only default "bound 0.9"
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import flowplug as fp
from benchmarks.measurements import Figure, Measurement, Recorded, run
from benchmarks.models import jacobians, residual_parts
from common.command import among, refusing
from common.densities import of_transform, size
from common.tables import EMBEDDED, load
from common.training import Options, rows_of
from common.trial import fit, mean_log_likelihood

MLP = fp.LipschitzMLP
DEEP = (128, 128)


class HalfSine(fp.Activation):
    """The mean of x and sin x, of slope between 0 and 1."""

    def forward(self, x: Tensor) -> Tensor:
        """The value."""
        return (x + x.sin()) / 2

    def derivative(self, x: Tensor) -> Tensor:
        """The slope."""
        return (1 + x.cos()) / 2


def orthonormal(square: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """The two blocks ``(n, n)`` and ``(m, n)`` of a matrix with orthonormal columns, by a Cayley transform."""
    skew, eye = square - square.T + rest.T @ rest, torch.eye(len(square))
    inverse = torch.linalg.inv(eye + skew)
    return (eye - skew) @ inverse, -2 * rest @ inverse


class Sandwich(fp.LipschitzMLP):
    r"""A network of one hidden layer bounded as a whole in the 2-norm, by a direct parametrisation.

    .. math:: g = \sqrt 2 \, C A^T \Psi \, \phi(\sqrt 2 \, \Psi^{-1} B x + b) + c,
        \qquad A A^T + B B^T = I, \quad C C^T = I

    times the bound, with :math:`[A, B]` and C by Cayley transforms, diagonal :math:`\Psi`, and slopes of
    :math:`\phi` in [0, 1].

    Reference: Wang, Manchester, "Direct Parameterization of Lipschitz-Bounded Deep Networks", ICML 2023, eq. (8).
    """

    def __init__(self, features: int, hidden: int = 128, *, activation: Callable[[], nn.Module]) -> None:
        super().__init__(features, (hidden,), activation=activation)
        for layer in self.layers:
            del layer.weight
        shapes = (hidden, hidden), (features, hidden), (features, features), (hidden - features, features)
        self.free = nn.ParameterList(torch.randn(shape) / hidden**0.5 for shape in shapes)
        self.log_scale = nn.Parameter(torch.zeros(hidden))

    def bounded_weights(self) -> list[Tensor]:
        """The two products around the activation."""
        if not hasattr(self, "log_scale"):  # the base class certifies what it built
            return super().bounded_weights()
        (a, b), last = orthonormal(*self.free[:2]), torch.cat(orthonormal(*self.free[2:])).T
        root = (2 * self.bound) ** 0.5
        return [root * b.T / self.log_scale.exp()[:, None], root * last @ a * self.log_scale.exp()]

    def certify(self, weights: Sequence[Tensor]) -> fp.LipschitzBound:
        """The bound of the parametrisation."""
        if not hasattr(self, "log_scale"):
            return super().certify(weights)
        return fp.LipschitzBound(self.bound, 2.0)


RECIPES: dict[str, Callable[[int], nn.Module]] = {
    "default": MLP,
    "layer by layer": partial(MLP, norm=fp.InfNorm()),
    "2-norm (Gram)": partial(MLP, norm=fp.Gram()),
    "1-norm": partial(MLP, norm=fp.OneNorm()),
    "inf to 2 to inf": partial(MLP, norm=(fp.InducedNorm(math.inf, 2), fp.InducedNorm(2, math.inf))),
    "learned orders": partial(MLP, norm=fp.LearnedOrder()),
    "sine": partial(MLP, activation=fp.Sine),
    "LipSwish": partial(MLP, activation=fp.LipSwish),
    "CLipSwish": partial(MLP, activation=fp.CLipSwish),
    "tanh": partial(MLP, activation=nn.Tanh),
    "bound 0.9": partial(MLP, bound=0.9),
    "bound 0.99": partial(MLP, bound=0.99),
    "64 wide": partial(MLP, hidden_features=(64,)),
    "256 wide": partial(MLP, hidden_features=(256,)),
    "2 hidden layers": partial(MLP, hidden_features=DEEP),
    "last layer zero": partial(MLP, zero_last=True),
    "dense concatenation": partial(fp.LipschitzDenseNet, norm=fp.InfNorm(), activation=fp.Sine),
    "published": partial(MLP, hidden_features=DEEP, norm=fp.Gram(), activation=fp.LipSwish, bound=0.9, zero_last=True),
    "sandwich, half sine": partial(Sandwich, activation=HalfSine),
    "sandwich, tanh": partial(Sandwich, activation=nn.Tanh),
}
DENSE = partial(fp.DenseTransform, activation=None, init=fp.ScaledIdentity())
BEFORE: dict[
    str, tuple[Callable[[int], fp.Transform], ...]
] = {  # what stands before each block, else `Whitening`, DENSE
    "ActNorm between": (fp.ActNorm,),
    "ActNorm, dense between": (fp.ActNorm, DENSE),
    "whitening between": (fp.Whitening,),
}
NAMES = (*RECIPES, *BEFORE)


@dataclass(frozen=True)
class Settings(Recorded):
    """What to train, and for how long."""

    data: str = EMBEDDED  # .npz file with arrays train, val and test, or that table
    seconds: float = 30  # CPU seconds of training each
    blocks: int = 8
    rows: int = 2000  # validation rows
    seeds: tuple[int, ...] = (0,)
    only: tuple[str, ...] = NAMES  # recipes to try

    def __post_init__(self) -> None:
        super().__post_init__()
        among(self, "only", NAMES)


def flow_of(name: str, features: int, blocks: int) -> fp.ComposedTransform:
    """Blocks with linear transforms before each."""
    parts: list[fp.Transform] = []
    for _ in range(blocks):
        parts += [make(features) for make in BEFORE.get(name, (fp.Whitening, DENSE))]
        parts.append(fp.ResidualTransform(RECIPES.get(name, MLP)(features)))
    return fp.ComposedTransform(*parts)


def use_of_bound(flow: fp.ComposedTransform, x: Tensor) -> Figure:
    """The mean norm of the Jacobian of g by its bound, of all blocks; norms without closed form in the 2-norm."""
    shares = []
    for part, inputs in residual_parts(flow, x):
        lipschitz = part.lipschitz
        order = lipschitz.domain if lipschitz.domain in (1.0, 2.0, math.inf) else 2.0
        shares.append(float(torch.linalg.matrix_norm(jacobians(part, inputs), order).mean()) / float(lipschitz))
    return Figure(sum(shares) / len(shares), least=min(shares), most=max(shares))


def measure(settings: Settings) -> Iterator[Measurement]:
    """Every recipe for every seed."""
    with refusing():
        table = load(settings.data)
    options = Options(seconds=settings.seconds, clock=time.process_time)
    val = table.val[: settings.rows]
    for name in settings.only:
        for seed in settings.seeds:
            torch.manual_seed(seed)
            flow = flow_of(name, table.features, settings.blocks)
            density = of_transform(flow, table.features)
            density.start(rows_of(table.train)(1000))
            training = fit(density, rows_of(table.train), options, name)
            figures: dict[str, Figure | float] = {
                "validation log-likelihood": Figure(mean_log_likelihood(density, val), "nats"),
                "use of the bound": use_of_bound(flow, val[:100]),
                "steps": training.step,
                "parameters": size(flow),
            }
            setting = {"seconds": settings.seconds, "seeds": [seed], "recipe": name, "data": table.name}
            yield "Recipes for residual flows", setting, figures


if __name__ == "__main__":
    run(measure, Settings, __doc__)
