"""Measures how much sooner a residual flow reaches the validation log-likelihood that normflows' own ends with.

normflows trains its residual flow (LipSwish networks, 2-norm, ActNorm, ``update_lipschitz`` after every step, Adam) for
the given CPU seconds; its best validation log-likelihood is the target. Printed is the CPU time each needs to reach it,
training steps alone, evaluations excluded.

    python examples/benchmarks/target.py
    python examples/benchmarks/target.py --data FILE.npz --seconds 120
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import normflows as nf
import torch
from tables import load_table, log_prob, residual_flow, train
from torch import Tensor
from tqdm import tqdm


def normflows_model(features: int, blocks: int) -> nf.NormalizingFlow:
    """Residual blocks as the documentation of normflows builds them."""
    flows = []
    for _ in range(blocks):
        net = nf.nets.LipschitzMLP([features, 128, 128, features], init_zeros=True, lipschitz_const=0.9)
        flows += [nf.flows.Residual(net), nf.flows.ActNorm(features)]
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(features, trainable=False), flows)


def train_normflows(model: nf.NormalizingFlow, rows: Tensor, lr: float) -> Iterator[float]:
    """Yields the CPU seconds of training after every step, for ever."""
    optimizer, spent = torch.optim.Adam(model.parameters(), lr), 0.0
    while True:
        start = time.process_time()
        loss = model.forward_kld(rows[torch.randint(len(rows), (256,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        nf.utils.update_lipschitz(model, 5)
        spent += time.process_time() - start
        yield spent


def curve(
    name: str, steps: Iterator[float], evaluate: Callable[[], float], seconds: float, target: float | None
) -> list[tuple[float, float]]:
    """(CPU seconds, validation log-likelihood) every 25 steps, until time or target is reached."""
    points, bar = [], tqdm(total=round(seconds), desc=name, unit="s")
    for i, spent in enumerate(steps):
        bar.update(round(min(spent, seconds)) - bar.n)
        if i % 25 == 24:
            points.append((spent, evaluate()))
            if target is not None and points[-1][1] >= target:
                break
        if spent > seconds:
            break
    bar.close()
    return points


def main() -> None:
    """Prints the target and both times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=".npz with arrays train and val; default: UCI Breast Cancer")
    parser.add_argument("--seconds", type=float, default=60, help="CPU seconds of training for normflows")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3, 2e-3, 5e-3], help="learning rates for normflows")
    parser.add_argument("--rows", type=int, default=2000, help="validation rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, val = load_table(options.data)
    val = val[: options.rows]

    def normflows_value(model: nf.NormalizingFlow) -> float:
        model.eval()
        value = float(model.log_prob(val).mean().detach())
        model.train()
        return value

    best = (float("-inf"), 0.0, 0.0)
    for lr in options.lr:
        torch.manual_seed(0)
        model = normflows_model(rows.shape[1], options.blocks)
        steps = train_normflows(model, rows, lr)
        for spent, value in curve(
            f"normflows, lr {lr:g}", steps, lambda model=model: normflows_value(model), options.seconds, None
        ):
            best = max(best, (value, -spent, lr))
    target, spent, lr = best[0], -best[1], best[2]

    torch.manual_seed(0)
    flow = residual_flow(rows.shape[1], options.blocks)

    def flowplug_value() -> float:
        flow.eval()
        with torch.no_grad():
            value = float(log_prob(flow, val).mean())
        flow.train()
        return value

    points = curve("flowplug", train(flow, rows, 2000), flowplug_value, options.seconds, target)
    print(f"target {target:.3f} nats: normflows (lr {lr:g}) {spent:.1f} s, ", end="")
    if points[-1][1] >= target:
        print(f"flowplug {points[-1][0]:.1f} s ({points[-1][1]:.3f}): {spent / points[-1][0]:.1f} times sooner")
    else:
        print(f"flowplug not in {points[-1][0]:.1f} s ({max(value for _, value in points):.3f})")


if __name__ == "__main__":
    main()
