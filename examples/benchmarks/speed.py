"""Times a training step of residual blocks against the bare networks and against normflows.

One step is forward and backward of the loss, without the optimizer, which is the same for all. The floor is
``x + g(x)`` of the same networks without any log-det, weights bounded once per step as always. The three are timed in
turn, round by round. Printed are ratios of total times, as lengths of series vary, and the middle half of all rounds.

    python examples/benchmarks/speed.py
    python examples/benchmarks/speed.py --only "default" "Krylov, 2 terms" --compile
    python examples/benchmarks/speed.py --hidden 128 --blocks 8 --batch 256
"""

import argparse
import statistics
import time
from collections.abc import Callable

import normflows as nf
import torch
from torch import Tensor

import flowplug as fp

ESTIMATORS = {
    "default": None,
    "Krylov, 2 terms": fp.Krylov(terms=fp.Truncated(2)),
    "Krylov, Recompute": fp.Krylov(gradient=fp.Recompute()),
    "PowerSeries": fp.PowerSeries(),
    "ExactLogDet": fp.ExactLogDet(),
}


def plain(networks: list[fp.LipschitzMLP], x: Tensor) -> Tensor:
    """The floor: residual networks without a log-det."""
    for network in networks:
        x = x + network(x)
    return x.square().sum(1).mean() / 2


def negative_log_likelihood(transforms: list[fp.ResidualTransform], x: Tensor) -> Tensor:
    """The loss of the same networks as residual transforms, up to a constant."""
    total = x.new_zeros(len(x))
    for transform in transforms:
        x, ladj = transform(x)
        total = total + ladj
    return (x.square().sum(1) / 2 - total).mean()


def normflows_model(features: int, hidden: list[int], blocks: int) -> nf.NormalizingFlow:
    """Residual blocks as the documentation of normflows builds them."""
    flows = [
        nf.flows.Residual(nf.nets.LipschitzMLP([features, *hidden, features], init_zeros=True, lipschitz_const=0.9))
        for _ in range(blocks)
    ]
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(features, trainable=False), flows)


def main() -> None:
    """Prints one line per estimator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=43)
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 128, 128], help="widths of the hidden layers")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="also time transforms under torch.compile")
    parser.add_argument("--only", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS), help="estimators to time")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_default_device(options.device)
    torch.manual_seed(0)
    cuda = torch.device(options.device).type == "cuda"

    x = torch.randn(options.batch, options.features)
    networks = [fp.LipschitzMLP(options.features, options.hidden) for _ in range(options.blocks)]
    model = normflows_model(options.features, options.hidden, options.blocks).to(options.device)

    def update_and_loss() -> Tensor:
        nf.utils.update_lipschitz(model, 5)
        return model.forward_kld(x)

    losses: dict[str, Callable[[], Tensor]] = {"plain": lambda: plain(networks, x), "normflows": update_and_loss}
    for name in options.only:
        logdet = ESTIMATORS[name]
        transforms = [fp.ResidualTransform(network, logdet=logdet) for network in networks]
        losses[name] = lambda transforms=transforms: negative_log_likelihood(transforms, x)
        if options.compile and isinstance(logdet, fp.Krylov | None):
            compiled = [torch.compile(transform) for transform in transforms]
            losses[f"{name}, compiled"] = lambda compiled=compiled: negative_log_likelihood(compiled, x)

    def step(loss: Callable[[], Tensor]) -> float:
        for parameter in [p for network in networks for p in network.parameters()] + list(model.parameters()):
            parameter.grad = None
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter() if cuda else time.process_time()
        loss().backward()
        if cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() if cuda else time.process_time()) - start

    times: dict[str, list[float]] = {name: [] for name in losses}
    warm = 15 if options.compile else 2
    for _ in range(options.rounds + warm):
        for name, loss in losses.items():
            times[name].append(step(loss))
    times = {name: values[warm:] for name, values in times.items()}  # past warming up and compilation

    print(f"{options.blocks} blocks, {options.features}-d, hidden {options.hidden}, batch {options.batch}, ", end="")
    print(f"{options.threads} thread(s), {options.device}, {options.rounds} rounds: total [quartiles]")
    for name, values in times.items():
        print(f"{name:26} {1e3 * statistics.median(values):8.1f} ms", end="")
        for other in ("plain", "normflows"):
            low, _, high = statistics.quantiles([a / b for a, b in zip(values, times[other], strict=True)], n=4)
            print(f"   {sum(values) / sum(times[other]):5.2f} [{low:.2f}, {high:.2f}] x {other}", end="")
        print()


if __name__ == "__main__":
    main()
