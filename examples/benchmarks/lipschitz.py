"""Prints how far certified Lipschitz bounds exceed the norms they bound, and what bounded weights cost.

The layers are trained first: dense ones in a flow on UCI Breast Cancer, the others to enlarge their Jacobian.

    python examples/benchmarks/lipschitz.py
"""

import argparse
import time
from collections.abc import Callable

import torch
from tables import load_table
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import flowplug as fp


def trained(norm: fp.Gram, width: int, steps: int) -> fp.LipschitzLinear:
    """The middle layer of a residual flow of one block, 30 x width x width x 30, trained on UCI Breast Cancer."""
    rows, _ = load_table(None)
    g = fp.LipschitzMLP(rows.shape[1], (width, width), norm=norm)
    transform = fp.ResidualTransform(g, logdet=fp.Krylov())
    optimizer = torch.optim.Adam(g.parameters(), 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        training_step(transform, rows[torch.randint(len(rows), (128,))])()
        optimizer.step()
    return g.layers[1]


def attacked(layer: nn.Module, x: Tensor, steps: int, lr: float) -> list[Tensor]:
    """Trains a layer to enlarge its Jacobian between two tanh; the weights in use at every step."""
    optimizer, weights = torch.optim.Adam(layer.parameters(), lr), []
    for _ in range(steps):
        x, moved = torch.randn_like(x), 0.01 * torch.randn_like(x)
        loss = -(torch.tanh(layer(x)) - torch.tanh(layer(x + moved))).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        weights.append(layer.bounded_weight().detach())
    return weights


def operator_norm(weight: Tensor, side: int, steps: int = 500) -> float:
    """The 2-norm of a convolution with zero padding on images of this size, by the power method in float64."""
    weight, padding = weight.double(), weight.shape[-1] // 2
    x = torch.randn(1, weight.shape[1], side, side, dtype=torch.float64)
    for _ in range(steps):
        x = x / x.norm()
        y = functional.conv2d(x, weight, padding=padding)
        x = functional.conv_transpose2d(y, weight, padding=padding)
    return float(y.norm())


def seconds(call: Callable[[], object], rounds: int) -> float:
    """CPU time of one call, the least of several rounds."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def weight_and_gradient(layer: fp.LipschitzLinear | fp.LipschitzConv2d) -> Callable[[], object]:
    """The bounded weight and the gradient through it."""
    seed = torch.randn_like(layer.weight)
    return lambda: torch.autograd.grad(layer.bounded_weight(), layer.parameters(), seed, allow_unused=True)


def weights_and_gradients(g: fp.LipschitzMLP | fp.LipschitzCNN) -> Callable[[], object]:
    """The same for all weights of a network, which may be bounded as a whole."""
    leaves = [layer.weight for layer in g.layers]
    seeds = [torch.randn_like(leaf) for leaf in leaves]
    return lambda: torch.autograd.grad(g.bounded_weights(), leaves, seeds)


def training_step(transform: fp.ResidualTransform, x: Tensor) -> Callable[[], object]:
    """Forward and backward of maximum likelihood."""

    def step() -> None:
        y, ladj = transform(x)
        (y.square().sum() / 2 - ladj.sum()).backward()

    return step


def print_dense(widths: list[int], steps: int, rounds: int) -> None:
    """Square layers: the certificate over the norm; and the share of a training step of a block 43 x width x width."""
    print("dense layers    Gram / norm - 1   share of a training step: Gram  SVD  PowerIteration  InfNorm  PathNorm")
    for width in tqdm(widths, desc="dense"):
        weight = trained(fp.Gram(), width, steps).bounded_weight().detach().double()
        loose = float(fp.Gram().measure(weight) / torch.linalg.matrix_norm(weight, 2)) - 1
        rows, shares = torch.randn(512, 43), []
        for norm in (fp.Gram(), fp.SVD(), fp.PowerIteration(), fp.InfNorm(), fp.PathNorm()):
            g = fp.LipschitzMLP(43, (width, width), norm=norm)
            transform = fp.ResidualTransform(g, logdet=fp.Krylov())
            bounded = seconds(weights_and_gradients(g), rounds)
            shares.append(bounded / seconds(training_step(transform, rows), rounds))
        tqdm.write(f"{width:12} {loose:17.2%} {'':28}" + "".join(f"{share:8.1%}" for share in shares))


def print_convolutions(channels: list[int], side: int, steps: int, rounds: int) -> None:
    """3 x 3 layers: the certificate over the norm on images of one size, and the time over that of the layer."""
    print(
        f"3 x 3 layers    Gram / norm on {side} x {side} - 1   time over that of the convolution: Gram  PowerIteration"
    )
    for width in tqdm(channels, desc="convolutions"):
        x = torch.randn(16, width, side, side)
        layer = fp.LipschitzConv2d(width, width, 3)
        weight = attacked(layer, x, steps, 0.01)[-1]
        loose = float(fp.Gram().measure(weight.double())) / operator_norm(weight, side) - 1
        x, ratios = torch.randn(64, width, side, side, requires_grad=True), []
        plain = nn.Conv2d(width, width, 3, padding=1)
        convolution = seconds(lambda plain=plain, x=x: plain(x).sum().backward(), rounds)
        for norm in (fp.Gram(), fp.PowerIteration()):
            layer = fp.LipschitzConv2d(width, width, 3, norm=norm)
            ratios.append(seconds(weight_and_gradient(layer), rounds) / convolution)
        tqdm.write(f"{width:12} {loose:27.2%} {'':28}" + "".join(f"{ratio:8.1%}" for ratio in ratios))


def print_networks(side: int, rounds: int) -> None:
    """The share of bounded weights in the training step of a residual block on images, 3 x 3, 1 x 1, 3 x 3."""
    print(f"LipschitzCNN(C, (64, 64)) on 16 images of {side} x {side}    share of a training step: Gram")
    for channels in tqdm((3, 12), desc="networks"):
        g, x = fp.LipschitzCNN(channels, (64, 64)), torch.randn(16, channels, side, side)
        bounded = seconds(weights_and_gradients(g), rounds)
        transform = fp.ResidualTransform(g, logdet=fp.Krylov())
        tqdm.write(f"C = {channels:8} {bounded / seconds(training_step(transform, x), rounds):40.1%}")


def print_power_iteration(width: int, steps: int) -> None:
    """The largest norm of a layer over an adversarial training, by tolerance."""
    print("PowerIteration  largest norm / bound - 1")
    for tol in tqdm((2e-2, 5e-3, 1e-3), desc="power iteration"):
        layer = fp.LipschitzLinear(width, width, norm=fp.PowerIteration(tol=tol))
        weights = attacked(layer, torch.randn(256, width), steps, 0.05)
        worst = max(float(torch.linalg.matrix_norm(weight, 2)) for weight in weights) / layer.bound - 1
        tqdm.write(f"{tol:12} {worst:17.2%}")


def print_orders(width: int, steps: int, count: int) -> None:
    """Mixed norms: the certificate over the value of the power method, orders from (1.5, 2.5)."""
    print(f"mixed norms, {width} x {width}     certificate / power method: median, largest")
    for descending in (False, True):
        for trained in (False, True):
            ratios = []
            for _ in tqdm(range(count), desc="mixed norms"):
                p, q = sorted((1.5 + torch.rand(2)).tolist(), reverse=descending)
                norm = fp.InducedNorm(p, q)
                weight = torch.randn(width, width)
                if trained:
                    layer = fp.LipschitzLinear(width, width, norm=norm)
                    weight = attacked(layer, torch.randn(256, width), steps, 0.01)[-1]
                ratios.append(float(norm.measure(weight) / norm.estimate(weight)))
            ratio = torch.tensor(ratios)
            kind = f"{'p > q' if descending else 'p <= q'}, {'trained' if trained else 'Gaussian'}"
            tqdm.write(f"{kind:20} {ratio.median():8.3f} {ratio.max():8.3f}")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="*", default=[64, 128, 256, 512])
    parser.add_argument("--channels", type=int, nargs="*", default=[8, 16, 32, 64])
    parser.add_argument("--side", type=int, default=32, help="size of the images")
    parser.add_argument("--steps", type=int, default=300, help="training steps of the layers")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each timing")
    parser.add_argument("--orders", type=int, default=20, help="matrices for mixed norms")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)

    print_dense(options.widths, options.steps, options.rounds)
    print_convolutions(options.channels, options.side, options.steps // 10, options.rounds)
    print_networks(options.side, options.rounds)
    print_power_iteration(128, options.steps)
    print_orders(64, options.steps, options.orders)


if __name__ == "__main__":
    main()
