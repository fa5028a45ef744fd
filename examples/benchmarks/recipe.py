"""Compares recipes for residual flows at equal CPU time, on validation rows: what the defaults were chosen by.

Each recipe changes one thing of the default. Printed are the validation log-likelihood, and the share of its Lipschitz
bound that a trained block uses: the mean norm of the Jacobian of g over the rows, divided by the bound, in its norm.

Mean of seeds 0, 1, 2 after 25 CPU seconds (breast cancer: seed 0, 20 s), in nats, and use of the bound:

                         UCI protein     UCI power       MiniBooNE, 4,307 rows   breast cancer, 455 rows
    default                2.17  0.83      0.75  0.73      -16.93  0.89              5.36  0.84
    2-norm (Gram)          1.94  0.81      0.63  0.65      -15.80  0.74             -1.03  0.81
    dense layers between   2.92  0.70      0.85  0.73      -15.72  0.83            -22.92  0.70

Dense layers gain most where rows are many, and overfit where they are few, as this script does not stop early. Seed 0
on MiniBooNE: last layer zero -16.4, 256 wide -16.8, LipSwish -17.5, learned orders -17.7, bound 0.9 -17.9, CLipSwish
-18.8, tanh -19.9, dense concatenation -20.1, 1-norm -22.8, two hidden layers -24.8, inf to 2 to inf -36.3, published
-15.8 (use of the bound 0.50).

    python examples/benchmarks/recipe.py
    python examples/benchmarks/recipe.py --data FILE.npz --seconds 100 --only default "bound 0.9"
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tables import load_table, log_prob, train_for
from torch import Tensor, nn
from tqdm import tqdm

import flowplug as fp

MLP = fp.LipschitzMLP

RECIPES: dict[str, Callable[[int], nn.Module]] = {
    "default": MLP,
    "2-norm (Gram)": partial(MLP, norm=fp.Gram()),
    "1-norm": partial(MLP, norm=fp.OneNorm()),
    "inf to 2 to inf": partial(MLP, norm=(fp.InducedNorm(math.inf, 2), fp.InducedNorm(2, math.inf))),
    "learned orders": partial(MLP, norm=fp.LearnedOrder()),
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


def normalised(features: int, rows: Tensor) -> fp.Transform:
    """The layer before each block: ActNorm."""
    del rows
    return fp.ActNorm(features)


def whitened(features: int, rows: Tensor) -> fp.Transform:
    """A dense layer in its place, which starts by whitening what reaches it."""
    transform = fp.DenseTransform(features, activation=None)
    transform.whiten(rows)
    return transform


def residual_flow(
    g: Callable[[int], nn.Module], before: Callable[[int, Tensor], fp.Transform], blocks: int, rows: Tensor
) -> fp.ComposedTransform:
    """Blocks with a layer before each; ``rows`` are followed through the flow."""
    parts: list[fp.Transform] = []
    for _ in range(blocks):
        for make in (lambda x: before(x.shape[1], x), lambda x: fp.ResidualTransform(g(x.shape[1]))):
            parts.append(make(rows))
            with torch.no_grad(), fp.no_logdet():
                rows = parts[-1](rows)[0]
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
    names = [*RECIPES, "dense layers between"]
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
            before = whitened if name == "dense layers between" else normalised
            flow = residual_flow(RECIPES.get(name, MLP), before, options.blocks, train[:1000])
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
