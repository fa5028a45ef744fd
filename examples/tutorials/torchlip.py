"""Uses layers of another library in g: deel-torchlip's, beside flowplug's own networks on two moons.

Their linear layers are torch's with a parametrised weight, so the bound is the norm of the weight in use; what else
they have is accepted once its bound is registered. GroupSort is piecewise linear, so densities jump: in a flow smooth
activations do better. Printed are test log-likelihoods in nats and the largest bound of the branches.

    python examples/torchlip.py
    python examples/torchlip.py --steps 3000 --blocks 16
"""

import argparse
from collections.abc import Callable

import torch
from deel import torchlip
from sklearn.datasets import make_moons
from torch import Tensor, nn
from tqdm import trange
from zuko.distributions import DiagNormal
from zuko.lazy import Flow, UnconditionalDistribution

import flowplug as fp
import flowplug_zuko


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


def moons(rows: int, seed: int) -> Tensor:
    """Standardised points ``(rows, 2)``."""
    points = torch.as_tensor(make_moons(rows, noise=0.1, random_state=seed)[0], dtype=torch.get_default_dtype())
    return (points - points.mean(dim=0)) / points.std(dim=0)


def fit(networks: list[nn.Module], steps: int) -> tuple[float, float]:
    """Trains a flow of these residual branches; returns its test log-likelihood in nats and the largest bound."""
    base = UnconditionalDistribution(DiagNormal, torch.zeros(2), torch.ones(2), buffer=True)
    flow = Flow([flowplug_zuko.ZukoTransform(fp.ResidualTransform(g)) for g in networks], base)
    optimizer, train = torch.optim.Adam(flow.parameters(), 5e-3), moons(20_000, seed=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in trange(steps, leave=False):
        loss = -flow().log_prob(train[torch.randint(len(train), (256,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    flow.eval()
    with torch.no_grad():
        value = float(flow().log_prob(moons(5_000, seed=1)).mean())
    return value, max(float(fp.lipschitz_bound(g)) for g in networks)


def main() -> None:
    """Trains the flows and prints their lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500, help="of training (default %(default)s)")
    parser.add_argument("--blocks", type=int, default=8, help="residual transforms (default %(default)s)")
    options = parser.parse_args()
    branches = {
        "flowplug.LipschitzMLP": lambda: fp.LipschitzMLP(2, bound=0.97),
        "deel.torchlip, sine": lambda: orthogonal(2, 64, 0.97, fp.Sine),
        "deel.torchlip, GroupSort": lambda: orthogonal(2, 64, 0.97, torchlip.GroupSort2),
    }
    print(f"{'g of':26} parameters   test, nats   largest bound")
    for name, make in branches.items():
        torch.manual_seed(0)
        networks = [make() for _ in range(options.blocks)]
        value, bound = fit(networks, options.steps)
        size = sum(parameter.numel() for g in networks for parameter in g.parameters())
        print(f"{name:26} {size:10} {value:12.3f} {bound:15.4f}")


if __name__ == "__main__":
    main()
