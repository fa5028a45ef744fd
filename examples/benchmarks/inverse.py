"""Tests and times the inverse: many points, trained blocks, and normflows.

1. Round trips of many points, standard normal and ten times that, through 8 residual transforms at their bound.
2. Evaluations of g per sample to an error of 1e-6, plain and accelerated, on the blocks of a trained flow (float64).
3. Sampling from one flow of normflows' networks, by normflows' own residual transforms and by flowplug's: wall time and
   error, the latter against the same solution to rounding in float64.

    python examples/benchmarks/inverse.py
    python examples/benchmarks/inverse.py --points 1000000 --data FILE.npz
"""

import argparse
import copy
import statistics
import time
from pathlib import Path

import normflows as nf
import torch
from tables import Counting, load_table, residual_flow, train
from torch import Tensor
from tqdm import tqdm

import flowplug as fp
import flowplug_normflows


def round_trips(points: int, features: int) -> None:
    """Prints the largest error of ``inverse(forward(x)) - x`` for each bound, dtype and spread."""
    print(f"round trip of {points} points, {features}-d, 8 blocks of width 32: largest error")
    for bound in (0.97, 0.99):
        for dtype in (torch.float32, torch.float64):
            torch.manual_seed(0)
            blocks = (fp.ResidualTransform(fp.LipschitzMLP(features, (32,), bound=bound)) for _ in range(8))
            flow = fp.ComposedTransform(*blocks).to(dtype)
            line = f"bound {bound:g}, {str(dtype)[6:]}:"
            for spread in (1, 10):
                x, worst = spread * torch.randn(points, features, dtype=dtype), 0.0
                with torch.no_grad(), fp.no_logdet():
                    for part in tqdm(x.split(50_000), desc=line, leave=False):
                        worst = max(worst, float((flow.inverse(flow(part)[0])[0] - part).abs().max()))
                line += f"   {spread:2} std {worst:.1e}"
            print(line)


def evaluations(rows: Tensor, steps: int) -> None:
    """Prints evaluations per sample on each trained block."""
    torch.set_default_dtype(torch.float64)
    rows = rows.double()
    flow = residual_flow(rows.shape[1], blocks=6)
    for _ in tqdm(train(flow, rows, steps), total=steps, desc="training", leave=False):
        pass
    flow.eval()
    print("evaluations of g per sample to an error of 1e-6, trained blocks")
    x, totals = rows[:1000], {"FixedPoint": 0.0, "Anderson": 0.0}
    for part in flow.transforms:
        with torch.no_grad(), fp.no_logdet():
            y = part(x)[0]
            if isinstance(part, fp.ResidualTransform):
                line = ""
                for solver in (fp.FixedPoint(tol=1e-6), fp.Anderson(tol=1e-6)):
                    counting = Counting(part.g)
                    back = fp.ResidualTransform(counting, solver=solver).eval().inverse(y)[0]
                    name = type(solver).__name__
                    totals[name] += counting.samples / len(x)
                    line += f"   {name} {counting.samples / len(x):6.1f} (error {float((back - x).abs().max()):.0e})"
                print(line)
            x = y
    plain, accelerated = totals.values()
    print(f"   in all {plain:.0f} / {accelerated:.0f} = {plain / accelerated:.1f}")
    torch.set_default_dtype(torch.float32)


def against_normflows(rows: Tensor, rounds: int, steps: int) -> None:
    """Prints time and error of sampling the same flow in both libraries."""
    features = rows.shape[1]
    torch.manual_seed(0)
    networks = [
        nf.nets.LipschitzMLP([features, 128, 128, features], init_zeros=False, lipschitz_const=0.9) for _ in range(8)
    ]
    base = nf.distributions.DiagGaussian(features, trainable=False)
    model = nf.NormalizingFlow(base, [flowplug_normflows.Residual(net) for net in networks])
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in tqdm(range(steps), desc="training", leave=False):
        loss = model.forward_kld(rows[torch.randint(len(rows), (256,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        nf.utils.update_lipschitz(model, 5)
    own = nf.NormalizingFlow(base, [nf.flows.Residual(net) for net in networks])
    ours = {}
    for tolerance in (1e-2, 1e-3, 1e-4, None):
        flows = [flowplug_normflows.Residual(net) for net in networks]
        for flow in flows:
            flow.core.solver = fp.Anderson(tol=tolerance)
        ours[f"flowplug, tol {tolerance}"] = nf.NormalizingFlow(base, flows)
    models = {"normflows": own, **ours}
    times: dict[str, list[float]] = {name: [] for name in models}
    errors: dict[str, float] = {}
    z = base.sample(1000)
    torch.set_default_dtype(torch.float64)
    with torch.no_grad():
        exact = copy.deepcopy(models["flowplug, tol None"]).double().eval()(z.double())
    torch.set_default_dtype(torch.float32)
    for _ in range(rounds + 1):
        for name, candidate in models.items():
            candidate.eval()
            # Sampling does not need the log-det; normflows' transforms compute it anyway.
            with torch.no_grad(), fp.no_logdet():
                start = time.perf_counter()
                x = candidate(z)
                times[name].append(time.perf_counter() - start)
            errors[name] = float((x - exact).abs().max().detach())
    print("1,000 samples of one flow, normflows' networks")
    for name in models:
        ratios = [a / b for a, b in zip(times["normflows"][1:], times[name][1:], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"   {name:20} {1e3 * statistics.median(times[name][1:]):7.1f} ms, largest error {errors[name]:.1e}, "
            f"{middle:.1f} [{low:.1f}, {high:.1f}] times as fast as normflows"
        )


def main() -> None:
    """Runs the three parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=".npz with arrays train and val; default: UCI Breast Cancer")
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=6)
    parser.add_argument(
        "--steps", type=int, default=1000, help="training steps of the flow in part 2, thrice those of 3"
    )
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows, _ = load_table(options.data)
    round_trips(options.points, options.features)
    evaluations(rows, options.steps)
    against_normflows(rows, options.rounds, options.steps // 3)


if __name__ == "__main__":
    main()
