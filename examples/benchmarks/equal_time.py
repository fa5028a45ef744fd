"""Compares residual flows at their defaults with normflows' own and with zuko's Real NVP, at equal CPU time.

Each model trains with AdamW and a cosine schedule on one thread. Twenty times validation rows are evaluated, outside
the time that counts, and the test rows once, at the best of these points. Printed are means in nats, +- 2 standard
errors. Learning rates were chosen on validation rows, for each model its own. With 8 transforms each, seed 0:

                              UCI protein       UCI power         MiniBooNE, 4,307 rows
    after 100 CPU seconds
    flowplug ResidualFlow      5.39 +- 0.14      1.60 +- 0.08     -15.41 +- 0.64
    normflows Residual         0.27 +- 0.17      0.00 +- 0.11     -18.53 +- 0.89
    zuko RealNVP               2.96 +- 0.15      0.93 +- 0.09     -20.04 +- 0.57
    after 600
    flowplug ResidualFlow      7.00 +- 0.15      1.71 +- 0.08     -16.25 +- 0.65
    normflows Residual         2.57 +- 0.17      0.80 +- 0.12     -16.26 +- 0.88
    zuko RealNVP               3.64 +- 0.16      1.11 +- 0.10     -24.10 +- 0.79

On MiniBooNE the default has overfitted after a tenth of 600 seconds, long before the learning rate has come down, so it
needs weight decay and a schedule of its own length. With --weight-decay 0.3 and the --lr that validation rows chose of
a few, 3e-3 for the default after 60 seconds, 2e-3 for it after more and for normflows, 1e-3 for Real NVP:

                          60 s               100 s              600 s
    flowplug ResidualFlow -13.84 +- 0.50     -14.26 +- 0.53     -15.26 +- 0.50
    normflows Residual                                          -15.42 +- 0.88
    zuko RealNVP                             -19.10 +- 0.57

With normflows' own networks in residual transforms of flowplug, after 60 CPU seconds, 2,000 rows each:

                          UCI protein       UCI power         MiniBooNE         patches of 8 x 8
    its networks, flowplug  1.20 +- 0.20    -0.20 +- 0.15     -16.04 +- 1.17    -24.31 +- 3.12
    normflows Residual     -0.09 +- 0.23    -0.40 +- 0.18     -20.11 +- 1.16    -52.01 +- 2.98

    python examples/benchmarks/equal_time.py
    python examples/benchmarks/equal_time.py --data FILE.npz --seconds 100
    python examples/benchmarks/equal_time.py --data miniboone.npz --seconds 60 --lr 3e-3 --weight-decay 0.3
"""

import argparse
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import zuko
from normflows.utils import update_lipschitz
from tables import load_splits, log_prob
from target import normflows_model
from torch import Tensor, nn
from tqdm import tqdm

import flowplug as fp
import flowplug_zuko


class Model:
    """A density over rows, with what its host does after a training step."""

    def __init__(self, module: nn.Module, log_prob: Callable[[Tensor], Tensor], lr: float) -> None:
        self.module, self.log_prob, self.lr = module, log_prob, lr

    def after_step(self) -> None:
        """Nothing; overridden where the host asks for it."""


class NormflowsResidual(Model):
    """LipSwish networks, 2-norm, whose power iterations the user has to call."""

    def __init__(self, features: int, blocks: int) -> None:
        module = normflows_model(features, blocks)
        super().__init__(module, module.log_prob, 2e-3)

    def after_step(self) -> None:
        """As in the documentation of normflows."""
        update_lipschitz(self.module, 5)


def same_networks(features: int, blocks: int) -> Model:
    """The networks, norm, bounds and ActNorm of `normflows_model`, in flowplug, but for the Swish of the inputs."""
    parts: list[fp.Transform] = []
    for _ in range(blocks):
        g = fp.LipschitzMLP(features, (128, 128), norm=fp.Gram(), activation=fp.LipSwish, bound=0.9**3, zero_last=True)
        parts += [fp.ActNorm(features), fp.ResidualTransform(g)]
    flow = fp.ComposedTransform(*parts)
    return Model(flow, lambda x: log_prob(flow, x), 2e-3)


def zuko_model(flow: zuko.flows.Flow, lr: float) -> Model:
    """An unconditional flow of zuko."""
    return Model(flow, lambda x: flow().log_prob(x), lr)


MODELS: dict[str, Callable[[int, int], Model]] = {
    "flowplug ResidualFlow": lambda d, blocks: zuko_model(flowplug_zuko.ResidualFlow(d, transforms=blocks), 5e-3),
    "normflows Residual": NormflowsResidual,
    "its networks, flowplug": same_networks,
    "zuko RealNVP": lambda d, blocks: zuko_model(
        zuko.flows.RealNVP(d, transforms=blocks, hidden_features=(128, 128)), 1e-3
    ),
}


def evaluate(model: Model, x: Tensor) -> Tensor:
    """Log-densities, ``(N,)``."""
    model.module.eval()
    with torch.no_grad():
        values = torch.cat([model.log_prob(part) for part in x.split(500)])
    model.module.train()
    return values


def train_for(
    model: Model, train: Tensor, val: Tensor, seconds: float, weight_decay: float = 0.0, batch: int = 256
) -> tuple[int, float, float]:
    """Leaves the model at its best validation value; returns steps, this value, and the CPU seconds it took."""
    optimizer = torch.optim.AdamW(model.module.parameters(), model.lr, weight_decay=weight_decay)
    best, state, spent, steps, points = (-math.inf, 0.0), model.module.state_dict(), 0.0, 0, 0
    while spent < seconds:
        start = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = model.lr * (1 + math.cos(math.pi * spent / seconds)) / 2
        loss = -model.log_prob(train[torch.randint(len(train), (batch,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step()
        spent, steps = spent + time.process_time() - start, steps + 1
        if spent >= seconds * (points + 1) / 20:
            points += 1
            value = float(evaluate(model, val).mean())
            if value > best[0]:
                best, state = (value, spent), copy.deepcopy(model.module.state_dict())
    model.module.load_state_dict(state)
    return steps, *best


def main() -> None:
    """Trains every model and prints its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=".npz with train, val and test; default: UCI Breast Cancer")
    parser.add_argument("--seconds", type=float, default=30, help="CPU seconds of training each (default %(default)s)")
    parser.add_argument("--blocks", type=int, default=8, help="transforms of each flow (default %(default)s)")
    parser.add_argument("--rows", type=int, default=5000, help="at most so many validation and test rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--lr", type=float, help="in place of the learning rates of the script")
    parser.add_argument("--weight-decay", type=float, default=0.0, help="of AdamW (default none)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, val, test = load_splits(options.data)
    val, test = val[: options.rows], test[: options.rows]
    print(f"{options.seconds:g} CPU seconds each, {options.blocks} transforms, one thread")
    print(f"{'model':24} seed parameters   steps   best after, s   validation   test, nats")
    for seed in tqdm(options.seeds, desc="seeds"):
        for name in tqdm(options.only, desc="models", leave=False):
            torch.manual_seed(seed)
            model = MODELS[name](train.shape[1], options.blocks)
            model.lr = options.lr or model.lr
            steps, value, spent = train_for(model, train, val, options.seconds, options.weight_decay)
            values = evaluate(model, test)
            size = sum(parameter.numel() for parameter in model.module.parameters())
            tqdm.write(
                f"{name:24} {seed:4} {size:10} {steps:7} {spent:15.0f} {value:12.3f} "
                f"{float(values.mean()):8.3f} +- {2 * float(values.std()) / math.sqrt(len(values)):.3f}"
            )


if __name__ == "__main__":
    main()
