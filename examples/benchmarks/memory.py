"""Measures the peak memory of log-det training, one process per setting.

Prints by how much the peak resident memory of one forward and backward pass exceeds that of the bare process, and the
ratio to differentiating the series (`Autograd`) with as many terms.

    python examples/benchmarks/memory.py
    python examples/benchmarks/memory.py --batch 512 --blocks 8
"""

import argparse
import resource
import subprocess
import sys

import torch

import flowplug as fp

GRADIENTS = {
    "Autograd": lambda terms: fp.PowerSeries(terms=terms, gradient=fp.Autograd()),
    "Neumann": lambda terms: fp.PowerSeries(terms=terms),
    "Recompute": lambda terms: fp.PowerSeries(terms=terms, gradient=fp.Recompute()),
    "Krylov Neumann": lambda terms: fp.Krylov(terms=terms),
    "Krylov Recompute": lambda terms: fp.Krylov(terms=terms, gradient=fp.Recompute()),
}


def peak(options: argparse.Namespace, name: str, terms: int) -> int:
    """Peak memory in bytes above that of the process before training, measured in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make = GRADIENTS[name]
    networks = [fp.LipschitzMLP(options.features, options.hidden) for _ in range(options.blocks)]
    flow = fp.ComposedTransform(*(fp.ResidualTransform(g, logdet=make(fp.Truncated(terms))) for g in networks))
    small = torch.randn(2, options.features)
    flow(small)[1].sum().backward()  # loads what torch loads at first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    y, ladj = flow(torch.randn(options.batch, options.features))
    (y.square().sum() / 2 - ladj.sum()).backward()
    return 1024 * max(1, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def main() -> None:
    """Prints one line per gradient and number of terms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=43)
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 128, 128])
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--terms", type=int, nargs="+", default=[2, 10, 40])
    parser.add_argument("--one", nargs=2, metavar=("GRADIENT", "TERMS"), help="measure this one and print bytes")
    options = parser.parse_args()
    if options.one:
        print(peak(options, options.one[0], int(options.one[1])))
        return
    print(f"{options.blocks} blocks, {options.features}-d, hidden {options.hidden}, batch {options.batch}, float32")
    print(f"{'gradient':18}" + "".join(f"{n:>6} terms: MiB  ratio" for n in options.terms))
    reference: dict[int, int] = {}
    for name in GRADIENTS:
        print(f"{name:18}", end="", flush=True)
        for terms in options.terms:
            done = subprocess.run(
                [sys.executable, *sys.argv, "--one", name, str(terms)], capture_output=True, text=True, check=True
            )
            size = int(done.stdout)
            reference.setdefault(terms, size)
            print(f"{size / 2**20:17.0f}  {size / reference[terms]:5.1%}", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
