"""Times `ExactLogDet` against the stochastic default over the dimension of the events.

A training step is forward and backward of one residual block, an evaluation its forward pass in eval mode, both on rows
of the given batch. Printed is the median ratio of CPU times (on a GPU, of the time until it is done), exact over
stochastic, and the spread of its middle half: on CPUs the default changes from exact to stochastic where it passes 1.

    python examples/benchmarks/breakeven.py
    python examples/benchmarks/breakeven.py --device cuda --batch 4096
    python examples/benchmarks/breakeven.py --hidden 128 128 128
"""

import argparse
import statistics
import time

import torch
from tqdm import tqdm

import flowplug as fp


def clock(device: torch.device) -> float:
    """CPU time, or the time at which a GPU has done what it was given."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(transform: fp.ResidualTransform, x: torch.Tensor) -> float:
    """The time of one step in train mode, of one evaluation in eval mode."""
    start = clock(x.device)
    if transform.training:
        y, ladj = transform(x)
        (y.square().sum() / 2 - ladj.sum()).backward()
    else:
        with torch.no_grad():
            transform(x)
    return clock(x.device) - start


def main() -> None:
    """Prints one line per dimension."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, nargs="+", default=[2, 6, 10, 21, 43, 63, 128, 784])
    parser.add_argument("--hidden", type=int, nargs="+", default=[128])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_device(options.device)
    torch.manual_seed(0)
    stochastic = {True: fp.Krylov(), False: fp.Krylov(terms=fp.Roulette(fp.Geometric(0.5), exact=8))}
    print(f"{options.device}, hidden {options.hidden}, batch {options.batch}: exact / stochastic, median [quartiles]")
    lines = []
    for features in tqdm(options.features):
        x, g = torch.randn(options.batch, features), fp.LipschitzMLP(features, options.hidden)
        line = f"D = {features:4}"
        for training, estimator in stochastic.items():
            pair = [
                fp.ResidualTransform(g, logdet=logdet, eval_logdet=logdet).train(training)
                for logdet in (fp.ExactLogDet(), estimator)
            ]
            times = [[seconds(transform, x) for transform in pair] for _ in range(options.rounds + 2)][2:]
            low, middle, high = statistics.quantiles([exact / other for exact, other in times], n=4)
            exact = statistics.median(exact for exact, _ in times)
            line += f"   {'training' if training else 'eval'} {middle:6.2f} [{low:.2f}, {high:.2f}]"
            line += f" exact {1e6 * exact / options.batch:7.1f} us/row"
        lines.append(line)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
