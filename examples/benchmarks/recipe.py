"""Compares recipes for residual flows at equal CPU time, on validation rows: what the defaults were chosen by.

Each recipe changes one thing of the default. Printed are the validation log-likelihood, and the share of its Lipschitz
bound that a trained block uses: the mean norm of the Jacobian of g over the rows, divided by the bound, in its norm.

Seed 0 after 25 CPU seconds, validation nats and use of the bound:

                         UCI protein     UCI power       MiniBooNE       patches of 8 x 8
    default                3.86  0.65      1.49  0.56    -14.83  0.79      4.50  0.91
    sine                   3.15  0.73      0.99  0.72    -15.35  0.86      1.91  0.92
    2-norm (Gram)          4.33  0.64      1.20  0.51    -21.51  0.65      2.80  0.67

On the first three tables after 100 CPU seconds:

    default                5.12  0.68      1.60  0.58    -15.27  0.85

The activation was chosen last. All else was, on the first three tables, with `Sine`, which the following figures have,
means of seeds 0 and 1:

                         UCI protein     UCI power       MiniBooNE, 4,307 rows
    default but sine       2.99  0.72      0.93  0.73      -15.51  0.86
    layer by layer         2.88  0.68      0.84  0.71      -16.37  0.84
    2-norm (Gram)          2.69  0.68      0.56  0.65      -17.26  0.68
    sandwich, tanh         2.80  0.61      0.74  0.64      -20.57  0.77
    ActNorm between        2.13  0.84      0.93  0.71      -17.04  0.90

Seed 0 on MiniBooNE, where it has -15.8: dense between, not whitened -15.3, bound 0.9 -15.7, bound 0.99, 256 wide, last
layer zero and published -15.8 (use of the bound of the published 0.49), 64 wide -16.2, LipSwish -16.9, tanh -18.1,
learned orders -18.3, two hidden layers -18.4, sandwich of half sines -20.1, whitening alone -20.9, CLipSwish -21.3,
dense concatenation -26.7, 1-norm -28.2, inf to 2 to inf -38.1. Seeds differ by up to 0.6 there.

Dense layers gain most where rows are many: on breast cancer with its 455 rows they overfit, as this script does not
stop early.

    python examples/benchmarks/recipe.py
    python examples/benchmarks/recipe.py --data FILE.npz --seconds 100 --only default "bound 0.9"
"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from tables import load_table, log_prob, train_for
from torch import Tensor, nn
from tqdm import tqdm

import flowplug as fp
from flowplug.lipschitz._activations import Activation

MLP = fp.LipschitzMLP

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
    "2 hidden layers": partial(MLP, hidden_features=(128, 128)),
    "last layer zero": partial(MLP, zero_last=True),
    "dense concatenation": partial(fp.LipschitzDenseNet, norm=fp.InfNorm(), activation=fp.Sine),
    "published": partial(
        MLP, hidden_features=(128, 128), norm=fp.Gram(), activation=fp.LipSwish, bound=0.9, zero_last=True
    ),
}


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
        for name, columns in (("inner", features), ("outer", 0)):
            width = hidden if name == "inner" else features
            square, rest = torch.randn(width, width), torch.randn(columns or hidden - features, width)
            self.register_parameter(f"{name}_square", nn.Parameter(square / hidden**0.5))
            self.register_parameter(f"{name}_rest", nn.Parameter(rest / hidden**0.5))
        self.log_scale = nn.Parameter(torch.zeros(hidden))

    def bounded_weights(self) -> list[Tensor]:
        """The two products around the activation."""
        if not hasattr(self, "log_scale"):  # the base class certifies what it built
            return super().bounded_weights()
        a, b = orthonormal(self.inner_square, self.inner_rest)
        last = torch.cat(orthonormal(self.outer_square, self.outer_rest)).T
        root = (2 * self.bound) ** 0.5
        return [root * b.T / self.log_scale.exp()[:, None], root * last @ a * self.log_scale.exp()]

    def certify(self, weights: Sequence[Tensor]) -> fp.LipschitzBound:
        """The bound of the parametrisation."""
        if not hasattr(self, "log_scale"):
            return super().certify(weights)
        return fp.LipschitzBound(self.bound, 2.0)


def orthonormal(square: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """The two blocks ``(n, n)`` and ``(m, n)`` of a matrix with orthonormal columns, by a Cayley transform."""
    skew, eye = square - square.T + rest.T @ rest, torch.eye(len(square))
    inverse = torch.linalg.inv(eye + skew)
    return (eye - skew) @ inverse, -2 * rest @ inverse


class HalfSine(Activation):
    """The mean of x and sin x, of slope between 0 and 1."""

    def forward(self, x: Tensor) -> Tensor:
        """The value."""
        return (x + x.sin()) / 2

    def derivative(self, x: Tensor) -> Tensor:
        """The slope."""
        return (1 + x.cos()) / 2


class Tanh(Activation):
    """tanh with its slope."""

    def forward(self, x: Tensor) -> Tensor:
        """The value."""
        return x.tanh()

    def derivative(self, x: Tensor) -> Tensor:
        """The slope."""
        return 1 - x.tanh().square()


RECIPES["sandwich, half sine"] = partial(Sandwich, activation=HalfSine)
RECIPES["sandwich, tanh"] = partial(Sandwich, activation=Tanh)


def linear(features: int) -> list[fp.Transform]:
    """What stands before each block: a dense transform that starts by whitening."""
    return [fp.Whitening(features), fp.DenseTransform(features, activation=None, init=fp.ScaledIdentity())]


BEFORE: dict[str, Callable[[int], list[fp.Transform]]] = {
    "ActNorm between": lambda features: [fp.ActNorm(features)],
    "ActNorm, dense between": lambda features: [fp.ActNorm(features), *linear(features)[1:]],
    "whitening between": lambda features: linear(features)[:1],
}


def residual_flow(name: str, features: int, blocks: int) -> fp.ComposedTransform:
    """Blocks with linear transforms before each."""
    parts: list[fp.Transform] = []
    for _ in range(blocks):
        parts += BEFORE.get(name, linear)(features)
        parts.append(fp.ResidualTransform(RECIPES.get(name, MLP)(features)))
    return fp.ComposedTransform(*parts)


@torch.no_grad()
def use_of_bound(flow: fp.ComposedTransform, x: Tensor) -> list[float]:
    """For each block the mean norm of the Jacobian of g by its bound; norms without closed form in the 2-norm."""
    shares = []
    for part in flow.transforms:
        if isinstance(part, fp.ResidualTransform):
            bound = part.lipschitz
            order = bound.norm if bound.norm in (1.0, 2.0, math.inf) else 2.0
            jacobians = torch.stack([torch.autograd.functional.jacobian(part.g, row) for row in x])
            shares.append(float(torch.linalg.matrix_norm(jacobians, order).mean()) / float(bound))
        x = part(x)[0]
    return shares


def main() -> None:
    """Trains every recipe and prints its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=".npz with arrays train and val; default: UCI Breast Cancer")
    parser.add_argument("--seconds", type=float, default=30, help="CPU seconds of training each (default %(default)s)")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--rows", type=int, default=2000, help="validation rows (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    names = [*RECIPES, *BEFORE]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="RECIPE", help=f"of {names}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, val = load_table(options.data)
    val = val[: options.rows]
    print(f"{options.seconds:g} CPU seconds each, {options.blocks} blocks, seeds {options.seeds}, one thread")
    print(f"{'recipe':22} parameters   steps   validation, nats   use of bound: mean, least, most")
    for name in tqdm(options.only, desc="recipes"):
        for seed in options.seeds:
            torch.manual_seed(seed)
            flow = residual_flow(name, train.shape[1], options.blocks)
            with torch.no_grad():
                flow(train[torch.randint(len(train), (1000,))])  # what starts from data
            steps = train_for(flow, train, options.seconds)
            flow.eval()
            with torch.no_grad():
                value = float(torch.cat([log_prob(flow, x) for x in val.split(500)]).mean())
            shares = use_of_bound(flow, val[:100])
            size = sum(parameter.numel() for parameter in flow.parameters())
            tqdm.write(
                f"{name:22} {size:10} {steps:7} {value:18.3f}   "
                f"{sum(shares) / len(shares):4.2f} {min(shares):4.2f} {max(shares):4.2f}"
            )


if __name__ == "__main__":
    main()
