"""Uses layers of another library in g: deel-torchlip's, beside flowplug's own networks on two moons.

Their linear layers are torch's with a parametrised weight, so the bound is the norm of the weight in use; what else
they have is accepted once its bound is registered. GroupSort is piecewise linear, so densities jump: in a flow smooth
activations do better. Printed are test log-likelihoods in nats and the largest bound of the branches.

    python examples/tutorials/torchlip.py
    python examples/tutorials/torchlip.py --steps 3000 --blocks 16
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from deel import torchlip
from torch import nn

import flowplug as fp
from common.command import parse, sound
from common.densities import log_likelihoods, of_transform, size
from common.plane import moons
from common.report import markdown
from common.training import Options as Schedule
from common.trial import fit


@fp.lipschitz_bound.register
def _(module: torchlip.GroupSort) -> fp.LipschitzBound:
    return fp.LipschitzBound(module._coefficient_lip)  # sorting alone: 1, in every norm


def orthogonal(features: int, hidden: int, bound: float, activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Near-orthogonal weights, each layer with a share of the bound."""
    share = bound ** (1 / 3)
    return nn.Sequential(
        torchlip.SpectralLinear(features, hidden, k_coef_lip=share),
        activation(),
        torchlip.SpectralLinear(hidden, hidden, k_coef_lip=share),
        activation(),
        torchlip.SpectralLinear(hidden, features, k_coef_lip=share),
    )


BRANCHES: dict[str, Callable[[], nn.Module]] = {
    "flowplug.LipschitzMLP": lambda: fp.LipschitzMLP(2, bound=0.97),
    "deel.torchlip, sine": lambda: orthogonal(2, 64, 0.97, fp.Sine),
    "deel.torchlip, GroupSort": lambda: orthogonal(2, 64, 0.97, torchlip.GroupSort2),
}


@dataclass(frozen=True)
class Options:
    """How to train."""

    steps: int = 500
    blocks: int = 8  # residual transforms

    def __post_init__(self) -> None:
        sound(self)


def main() -> None:
    """Trains the flows and prints their lines."""
    options, rows = parse(Options, description=__doc__), []
    # torchlip keeps its bounds by parametrisations, whose results flowplug measures without knowing a limit of theirs.
    warnings.filterwarnings("ignore", category=fp.UnboundedBranchWarning)
    for name, make in BRANCHES.items():
        torch.manual_seed(0)
        networks = [make() for _ in range(options.blocks)]
        density = of_transform(fp.ComposedTransform(*map(fp.ResidualTransform, networks)), 2)
        fit(density, moons, Schedule(steps=options.steps), name)
        value = float(log_likelihoods(density, moons(5_000)).mean())
        bound = max(float(fp.lipschitz_bound(g)) for g in networks)
        rows.append([name, size(density), f"{value:.3f}", f"{bound:.4f}"])
    print(markdown(["g of", "parameters", "test, nats", "largest bound"], rows))


if __name__ == "__main__":
    main()
