"""Compares host flows with and without flowplug's residual transforms on real data, at equal training time.

For each host three models are trained: its stock coupling or autoregressive flow, the same flow with residual
transforms mixed in, and a pure residual flow. The parameters with the best validation log-likelihood are tested. Prints
a table and writes it, with a picture of 2-D marginals, to the output folder.

    python examples/compare.py                                  # UCI Breast Cancer Wisconsin, shipped with scikit-learn
    python examples/compare.py --data FILE.npz --seconds 60     # arrays train, val and test of shape (rows, features)
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import nflows.distributions
import nflows.flows
import nflows.nn.nets
import nflows.transforms
import normflows as nf
import numpy as np
import torch
import zuko
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from tqdm import tqdm

import flowplug as fp
import flowplug_nflows
import flowplug_normflows
import flowplug_zuko

SAMPLES = 1000


@dataclass
class Data:
    """A table, standardised by its training rows; each part is ``(rows, features)``."""

    name: str
    train: Tensor
    val: Tensor
    test: Tensor


@dataclass
class Model:
    """What is compared, behind one face for all hosts; calls take and give ``(rows, features)``."""

    name: str
    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]
    round_trip: Callable[[Tensor], Tensor]


@dataclass
class Result:
    """One row of the table."""

    model: str
    test_log_likelihood: float
    two_standard_errors: float
    parameters: int
    steps_per_second: float
    sampling_ms: float
    round_trip_error: float


def load_data(path: Path | None, device: str) -> Data:
    """Reads an .npz file, or splits and standardises the default table.

    Raises:
        ValueError: The file lacks an array, an array is not a table of finite numbers of one width, or a feature is
            constant in the training rows, where it has no density.
    """
    if path is None:
        name = "UCI Breast Cancer Wisconsin, log of 30 measurements"
        table = np.log(load_breast_cancer().data + 0.01)  # positive and skewed, with some zeros
        table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0)).numpy()]
        arrays = dict(zip(("train", "val", "test"), np.split(table, [341, 455]), strict=True))
    else:
        name = path.stem
        with np.load(path, allow_pickle=False) as file:
            missing = {"train", "val", "test"} - set(file.files)
            if missing:
                raise ValueError(f"{path} lacks the arrays {sorted(missing)}; it holds {file.files}")
            arrays = {part: file[part] for part in ("train", "val", "test")}
    widths = {array.shape[1:] for array in arrays.values()}
    if len(widths) != 1 or any(array.ndim != 2 or not np.isfinite(array).all() for array in arrays.values()):
        raise ValueError(f"train, val and test must be finite tables of one width; got widths {widths}")
    mean, std = arrays["train"].mean(0), arrays["train"].std(0)
    if not std.all():
        raise ValueError(f"features {np.flatnonzero(std == 0).tolist()} are constant in train: leave them out")
    parts = {part: torch.tensor((array - mean) / std, dtype=torch.float32) for part, array in arrays.items()}
    return Data(name, **{part: tensor.to(device) for part, tensor in parts.items()})


def nflows_models(features: int) -> list[Callable[[], Model]]:
    """Rational-quadratic spline couplings with LU layers between (Durkan et al. 2019)."""

    def coupling(i: int) -> nn.Module:
        def network(inputs: int, outputs: int) -> nn.Module:
            return nflows.nn.nets.ResidualNet(inputs, outputs, hidden_features=64, num_blocks=1)

        mask = nflows.utils.create_alternating_binary_mask(features, even=i % 2 == 0)
        return nflows.transforms.PiecewiseRationalQuadraticCouplingTransform(
            mask, network, num_bins=8, tails="linear", tail_bound=4.0
        )

    def residual() -> list[nn.Module]:
        return [
            flowplug_nflows.NflowsTransform(fp.ActNorm(features)),
            flowplug_nflows.ResidualTransform(features, hidden_features=128),
        ]

    def build(name: str, couplings: int, residuals: int) -> Model:
        layers: list[nn.Module] = []
        for i in range(couplings):
            layers += residual() if i % 2 == 0 and i < 2 * residuals else []
            layers += [nflows.transforms.LULinear(features), coupling(i)]
        flow = nflows.flows.Flow(
            nflows.transforms.CompositeTransform(layers), nflows.distributions.StandardNormal([features])
        )
        return wrap(name, flow)

    def wrap(name: str, flow: nflows.flows.Flow) -> Model:
        transform = flow._transform
        return Model(name, flow, flow.log_prob, flow.sample, lambda x: transform.inverse(transform(x)[0])[0])

    def pure() -> Model:
        return wrap("nflows: pure residual", flowplug_nflows.ResidualFlow(features, 128, 10, 1))

    return [
        lambda: build("nflows: RQ-NSF coupling", 6, 0),
        lambda: build("nflows: RQ-NSF coupling + residual", 5, 3),
        pure,
    ]


def normflows_models(features: int) -> list[Callable[[], Model]]:
    """Affine couplings (Real NVP) with LU layers between (Dinh et al. 2017)."""
    half = (features + 1) // 2

    def coupling() -> list[nn.Module]:
        network = nf.nets.MLP([half, 128, 128, 2 * (features - half)], init_zeros=True)
        block = nf.flows.AffineCouplingBlock(network, scale_map="sigmoid")
        return [nf.flows.LULinearPermute(features), block]

    def residual(*before: fp.Transform) -> list[nn.Module]:
        net = fp.LipschitzMLP(features, (128,))
        return [flowplug_normflows.Residual(net), *map(flowplug_normflows.NormflowsFlow, before)]

    def linear() -> list[fp.Transform]:
        return [fp.DenseTransform(features, activation=None, init=fp.ScaledIdentity()), fp.Whitening(features)]

    def build(name: str, couplings: int, residuals: int) -> Model:
        flows: list[nn.Module] = []
        for i in range(couplings):
            flows += residual(fp.ActNorm(features)) if i % 2 == 0 and i < 2 * residuals else []
            flows += coupling()
        return wrap(name, flows)

    def wrap(name: str, flows: list[nn.Module]) -> Model:
        model = nf.NormalizingFlow(nf.distributions.DiagGaussian(features, trainable=False), flows)
        return Model(
            name, model, model.log_prob, lambda n: model.sample(n)[0], lambda x: model.forward(model.inverse(x))
        )

    return [
        lambda: build("normflows: Real NVP", 8, 0),
        lambda: build("normflows: Real NVP + residual", 6, 3),
        lambda: wrap("normflows: pure residual", [flow for _ in range(10) for flow in residual(*linear())]),
    ]


def zuko_models(features: int) -> list[Callable[[], Model]]:
    """A masked autoregressive flow (Papamakarios et al. 2017)."""

    def wrap(name: str, flow: zuko.flows.Flow) -> Model:
        def round_trip(x: Tensor) -> Tensor:
            transform = flow().transform
            return transform.inv(transform(x))

        return Model(name, flow, lambda x: flow().log_prob(x), lambda n: flow().sample((n,)), round_trip)

    def stock(transforms: int) -> zuko.flows.Flow:
        return zuko.flows.MAF(features, transforms=transforms, hidden_features=(128, 128), randperm=True)

    def mixed() -> Model:
        flow = stock(4)
        for i in (0, 4):
            flow.transform.transforms.insert(i, flowplug_zuko.ZukoTransform(fp.ActNorm(features)))
            flow.transform.transforms.insert(i + 1, flowplug_zuko.ResidualTransform(features))
        return wrap("zuko: MAF + residual", flow)

    return [
        lambda: wrap("zuko: MAF", stock(5)),
        mixed,
        lambda: wrap("zuko: pure residual", flowplug_zuko.ResidualFlow(features, transforms=10)),
    ]


HOSTS = {"nflows": nflows_models, "normflows": normflows_models, "zuko": zuko_models}


@torch.no_grad()
def log_likelihoods(model: Model, x: Tensor) -> Tensor:
    """The log-likelihood of each row, in nats, in eval mode."""
    model.module.eval()
    values = torch.cat([model.log_prob(rows) for rows in x.split(1000)])
    model.module.train()
    return values


def train(model: Model, data: Data, args: argparse.Namespace) -> float:
    """Maximises the likelihood for ``args.seconds``, keeps the best parameters on ``data.val``; returns steps/s."""
    optimizer = torch.optim.Adam(model.module.parameters(), lr=args.lr)
    best, best_state, steps, checks = -math.inf, model.module.state_dict(), 0, 0
    bar = tqdm(total=args.seconds, desc=f"{model.name:36}", bar_format="{desc} {percentage:3.0f}%|{bar:20}| {postfix}")
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < args.seconds or not checks:
        done = min(elapsed / args.seconds, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (steps + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done))
        rows = torch.randint(len(data.train), (args.batch,), device=data.train.device)
        loss = -model.log_prob(data.train[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.module.parameters(), 100.0)
        optimizer.step()
        steps += 1
        bar.n = min(elapsed, args.seconds)
        if done >= checks / 40:
            checks += 1
            value = float(log_likelihoods(model, data.val[:2000]).mean())
            if value > best:
                best, best_state = value, copy.deepcopy(model.module.state_dict())
            bar.set_postfix_str(f"{steps} steps, validation {value:.3f}, best {best:.3f} nats")
    steps_per_second = steps / (time.perf_counter() - start)
    bar.n = args.seconds
    bar.close()
    model.module.load_state_dict(best_state)
    return steps_per_second


@torch.no_grad()
def evaluate(model: Model, data: Data, steps_per_second: float) -> tuple[Result, Tensor]:
    """Tests a trained model; also returns samples ``(SAMPLES, features)``."""
    values = log_likelihoods(model, data.test)
    model.module.eval()
    x = data.test[:SAMPLES]
    samples, sampling_ms, round_trip_error = x[:0].cpu(), math.nan, math.nan
    try:
        with fp.no_logdet():
            round_trip_error = float((model.round_trip(x) - x).abs().max())
            start = time.perf_counter()
            samples = model.sample(SAMPLES).cpu()
            sampling_ms = 1000 * (time.perf_counter() - start)
    except fp.NonFiniteError as error:
        print(f"{model.name} cannot sample, a host's layer overflowed: {error}")
    parameters = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    spread = 2 * float(values.std()) / math.sqrt(len(values))
    mean = float(values.mean())
    return Result(model.name, mean, spread, parameters, steps_per_second, sampling_ms, round_trip_error), samples


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    lines = [
        f"| model | test log-likelihood (nats) +- 2 s.e. | parameters | steps/s | {SAMPLES} samples, ms | round trip |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.model} | {r.test_log_likelihood:.2f} +- {r.two_standard_errors:.2f} | {r.parameters:,} "
        f"| {r.steps_per_second:.0f} | {r.sampling_ms:.0f} | {r.round_trip_error:.0e} |"
        for r in results
    ]
    return "\n".join(lines)


def draw(data: Data, samples: dict[str, Tensor], path: Path) -> None:
    """Draws the first two features of the training rows and of each model's samples."""
    panels = {"data": data.train.cpu(), **samples}
    columns = min(len(panels), 5)
    rows = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 3.2 * rows), squeeze=False)
    low, high = data.test[:, :2].quantile(torch.tensor([0.005, 0.995], device=data.test.device), dim=0).cpu()
    margin = 0.1 * (high - low)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (name, points) in zip(axes.flat, panels.items(), strict=False):
        axis.scatter(points[:SAMPLES, 0], points[:SAMPLES, 1], s=4, alpha=0.4, color="k" if name == "data" else "C0")
        axis.set_xlim(float(low[0] - margin[0]), float(high[0] + margin[0]))
        axis.set_ylim(float(low[1] - margin[1]), float(high[1] + margin[1]))
        axis.set_title(name, fontsize=8)
        axis.set(xticks=[], yticks=[])
    figure.suptitle(f"{data.name}: features 1 and 2")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=".npz file with arrays train, val and test")
    parser.add_argument("--seconds", type=float, default=20.0, help="training time of each model (default %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default %(default)s)")
    parser.add_argument("--hosts", nargs="+", choices=HOSTS, default=list(HOSTS), help="hosts to compare (default all)")
    parser.add_argument("--out", type=Path, default=Path("compare_out"), help="folder written to (default %(default)s)")
    parser.add_argument("--lr", type=float, default=5e-3, help="largest learning rate (default %(default)s)")
    parser.add_argument("--batch", type=int, default=256, help="rows per step (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of each model (default %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Trains, tests and reports every model."""
    args = parse()
    data = load_data(args.data, args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{data.name}: {len(data.train)} training rows; {args.seconds:g} s a model on {args.device}")
    results, samples = [], {}
    for host in args.hosts:
        for make in HOSTS[host](data.train.shape[1]):
            torch.manual_seed(args.seed)
            model = make()
            model.module.to(args.device)
            result, samples[model.name] = evaluate(model, data, train(model, data, args))
            results.append(result)
    report = table(results)
    print(f"\n{report}")
    (args.out / "results.md").write_text(f"{data.name}, {args.seconds:g} s a model on {args.device}\n\n{report}\n")
    (args.out / "results.json").write_text(json.dumps([asdict(result) for result in results], indent=1))
    draw(data, samples, args.out / "marginals.png")
    print(f"\nwritten to {args.out}: results.md, results.json, marginals.png")


if __name__ == "__main__":
    main()
