"""Measures what residual blocks of images cost, and how noisy their log-dets are.

1. A training step of one block each at 4 x 14 x 14 and 16 x 7 x 7, by the default and by `Recompute`, over that of the
   same networks behind a module that flowplug knows nothing of, whose products walk a graph and whose trace is unknown.
2. The peak memory of a training step of 4 blocks at 1 x 28 x 28 beyond the bare process, for as many terms.
3. Of a flow trained on images, squeezed once and mapped to normal scores before: the variance of the gradient of the
   blocks' mean log-dets, times the time it takes, by that of `Krylov` without the trace and with a group of 32, which
   was the default; one batch, many draws.
4. The standard deviation over the noise of an image's bits per dimension, and the time, in evaluation: with the default
   and with the published protocol, a power series of 20 terms and more by roulette, one length for all.
5. The time of sampling.

    python examples/benchmarks/image_costs.py
    python examples/benchmarks/image_costs.py --data FILE.npz --steps 300
"""

import math
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle
from tqdm import tqdm

import flowplug as fp
from benchmarks.measurements import Figure, Measurement, Recorded, median, over, run
from benchmarks.models import Counting, likelihood_loss
from common.clock import paired, seconds
from common.command import at_least, refusing
from common.memory import peak_alone
from common.tables import stored
from common.training import Options, Training

DIGITS = "digits"
GRADIENTS: Mapping[str, fp.LogDet | None] = {"default": None, "Recompute": fp.Krylov(gradient=fp.Recompute())}


def few(exact: int, group: int, share: float = 0.5, *, control: fp.Control | None = None) -> fp.Krylov:
    """So many terms always, and more for a share of the rows."""
    roulette = fp.Roulette(fp.Geometric(0.75, share=share), exact=exact, group=group)
    return fp.Krylov(terms=roulette, control=control)


TRACE = fp.ExactTrace()
BEFORE = "2 terms, groups of 32, no trace"
TERMS: Mapping[str, fp.LogDet | None] = {
    BEFORE: few(2, 32),
    "2 terms, groups of 4, no trace": few(2, 4),
    "2 terms, groups of 32": few(2, 32, control=TRACE),
    "2 terms, groups of 4": few(2, 4, control=TRACE),
    "3 terms, groups of 4": few(3, 4, control=TRACE),
    "4 terms, groups of 4": few(4, 4, control=TRACE),
    "default": None,
}
PUBLISHED = fp.PowerSeries(
    terms=fp.Roulette(fp.Geometric(0.5), exact=20, group=2**20), probes=fp.Gaussian(), gradient=fp.Neumann()
)


@dataclass(frozen=True)
class Settings(Recorded):
    """What to measure."""

    data: str = DIGITS  # .npz file with arrays train, val and test of grey images, or those of scikit-learn
    hidden: int = 64
    blocks: int = 10  # of the flow that is trained
    steps: int = 300
    batch: int = 64
    draws: int = 40
    rounds: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 2, "batch")  # half of them are evaluated
        at_least(self, 8, "draws")  # of a quarter variances are taken


def network(channels: int, hidden: int) -> fp.LipschitzCNN:
    """Kernels of 3, 1 and 3 pixels."""
    return fp.LipschitzCNN(channels, (hidden, hidden))


def step(transforms: list[fp.ResidualTransform], images: list[Tensor]) -> None:
    """Forward and backward of each transform on its images."""
    for transform, x in zip(transforms, images, strict=True):
        torch.autograd.backward(likelihood_loss([transform], x))


def steps(settings: Settings) -> Iterator[Measurement]:
    """Part 1."""
    images = [torch.randn(settings.batch, *shape, requires_grad=True) for shape in ((4, 14, 14), (16, 7, 7))]
    networks = [network(x.shape[1], settings.hidden) for x in images]
    unknown = [fp.ResidualTransform(Counting(g), logdet=fp.Krylov(), event_dim=3) for g in networks]
    calls = {"unknown": partial(step, unknown, images)}
    for name, logdet in GRADIENTS.items():
        calls[name] = partial(step, [fp.ResidualTransform(g, logdet=logdet) for g in networks], images)
    times = paired(calls, settings.rounds)
    for name in GRADIENTS:
        setting = {"hidden": settings.hidden, "rows": settings.batch, "gradient": name}
        figures = {
            "over unknown networks": over(times[name], times["unknown"]),
            "step": median([1e3 * value for value in times[name]], "ms"),
        }
        yield "Cost of a training step on images", setting, figures


def pass_of(hidden: int, name: str, rows: int) -> None:
    """What part 2 measures."""
    gradient = fp.Recompute() if name == "Recompute" else fp.Neumann()
    logdet = fp.Krylov(terms=fp.Truncated(4), gradient=gradient)
    networks = [network(1, hidden) for _ in range(4)]
    known: list[nn.Module] = [Counting(g) if name == "unknown" else g for g in networks]
    transforms = [fp.ResidualTransform(g, logdet=logdet, event_dim=3) for g in known]
    torch.autograd.backward(likelihood_loss(transforms, torch.randn(rows, 1, 28, 28)))


def memory(settings: Settings) -> Iterator[Measurement]:
    """Part 2."""
    rows = settings.batch // 2
    for name in ("unknown", *GRADIENTS):
        work = partial(pass_of, settings.hidden, name)
        setting = {"blocks": 4, "hidden": settings.hidden, "rows": rows, "terms": 4, "gradient": name}
        yield (
            "Memory of a training step on images",
            setting,
            {"peak": Figure(peak_alone(partial(work, 2), partial(work, rows)), "MiB")},
        )


def pixels(source: str) -> tuple[Tensor, int]:
    """Grey images ``(N, H, W)``, and how many levels they have."""
    if source == DIGITS:
        return torch.tensor(load_digits().images), 17
    grey = stored(Path(source), ("train",), f"an .npz file with an array train of grey images, or {DIGITS}")["train"]
    if grey.dtype != np.uint8 or grey.ndim != 3 or not grey.size or grey.shape[1] != grey.shape[2] or grey.shape[1] % 2:
        raise ValueError(f"train of {source} must be bytes (n, H, H), H even; got {grey.dtype} {grey.shape}")
    return torch.from_numpy(grey), 256


class Images:
    """Batches of normal scores, squeezed once: ``(B, 4, H / 2, W / 2)``."""

    def __init__(self, grey: Tensor, levels: int) -> None:
        self._levels = levels
        self._grey = grey.flatten(1).float()
        self._side = grey.shape[1]
        self.features = self._grey.shape[1]
        self._scores = fp.HistogramGaussianization(self.features, levels=self._levels)
        self._scores.start(self._dequantised(len(grey)))
        self._scores.eval()

    def _dequantised(self, rows: int) -> Tensor:
        chosen = self._grey[torch.randint(len(self._grey), (rows,))]
        return (chosen + torch.rand_like(chosen)) / self._levels

    @torch.no_grad()
    def __call__(self, rows: int) -> Tensor:
        """Random ones."""
        scores = self._scores(self._dequantised(rows))[0]
        return pixel_unshuffle(scores.reshape(-1, 1, self._side, self._side), 2)


def trained(settings: Settings, sample: Images) -> fp.ComposedTransform:
    """The flow of parts 3 to 5."""
    parts: list[fp.Transform] = []
    for _ in range(settings.blocks):
        parts += [fp.ActNorm(4, event_dim=3), fp.ResidualTransform(network(4, settings.hidden))]
    flow = fp.ComposedTransform(*parts)
    flow.start(sample(256))
    options = Options(steps=settings.steps, lr=2e-3, clip=1.0, batch=settings.batch, warmup=20)
    training = Training(flow, lambda x: likelihood_loss([flow], x), sample, options)
    for _ in tqdm(training, "training", settings.steps):
        pass
    return flow


def gradient(transform: fp.ResidualTransform, x: Tensor) -> Tensor:
    """That of the mean log-det with respect to all parameters, ``(P,)``."""
    leaves = list(transform.parameters())
    found = torch.autograd.grad(transform(x)[1].mean(), leaves, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


def noise(settings: Settings, flow: fp.ComposedTransform, x: Tensor) -> Iterator[Measurement]:
    """Part 3."""
    totals = {name: (0.0, 0.0) for name in TERMS}
    for part in tqdm(flow.transforms, "blocks"):
        if isinstance(part, fp.ResidualTransform):
            part.train()
            found: dict[str, list[Tensor]] = {name: [] for name in TERMS}
            times: dict[str, list[float]] = {name: [] for name in TERMS}
            for _ in range(settings.draws):
                for name, logdet in TERMS.items():
                    part.logdet, start = logdet, seconds()
                    found[name].append(gradient(part, x))
                    times[name].append(seconds() - start)
            for name, (variance, spent) in totals.items():
                own = float(torch.stack(found[name]).var(0).sum())
                totals[name] = variance + own, spent + statistics.median(times[name])
            part.logdet = None
        x = part(x)[0].detach()
    for name, (variance, spent) in totals.items():
        before, once = totals[BEFORE]
        setting = {"data": Path(settings.data).stem, "rows": len(x), "blocks": settings.blocks, "terms": name}
        figures = {
            "variance": Figure(variance / before, "ratio"),
            "time": Figure(spent / once, "ratio of times"),
            "variance x time": Figure(variance * spent / (before * once), "ratio"),
        }
        yield "Noise of gradients on images", setting, figures


@torch.no_grad()
def evaluation(settings: Settings, flow: fp.ComposedTransform, x: Tensor) -> Iterator[Measurement]:
    """Part 4."""
    residual = [part for part in flow.transforms if isinstance(part, fp.ResidualTransform)]
    flow.eval()
    for name, logdet in {"default": None, "published": PUBLISHED}.items():
        ladjs, times = [], []
        for draw in range(settings.draws // 4):
            for part in residual:
                part.eval_logdet = logdet
                part.noise_seed.fill_(draw)
            start = seconds()
            ladjs.append(flow(x)[1])
            times.append(1e3 * (seconds() - start) / len(x))
        deviation = torch.stack(ladjs).var(0).mean().sqrt() / (x[0].numel() * math.log(2))
        setting = {"data": Path(settings.data).stem, "rows": len(x), "blocks": settings.blocks, "log-det": name}
        figures = {
            "standard deviation": Figure(float(deviation), "bits/dim of an image"),
            "time": median(times, "ms an image"),
        }
        yield "Evaluation of image flows", setting, figures
    for part in residual:
        part.eval_logdet = None


@torch.no_grad()
def sampling(settings: Settings, flow: fp.ComposedTransform, shape: torch.Size) -> Iterator[Measurement]:
    """Part 5."""
    flow.eval()
    z, times, errors = torch.randn(16, *shape), [], []
    for _ in range(settings.rounds):
        with fp.no_logdet():
            start = time.process_time()
            x = flow.inverse(z)[0]
            times.append(1e3 * (time.process_time() - start) / len(z))
            errors.append(float((flow(x)[0] - z).abs().max()))
    setting = {"data": Path(settings.data).stem, "samples": len(z), "blocks": settings.blocks}
    yield "Samples of image flows", setting, {"time": median(times, "ms an image"), "largest error": max(errors)}


def measure(settings: Settings) -> Iterator[Measurement]:
    """All parts."""
    with refusing():
        grey, levels = pixels(settings.data)
    yield from steps(settings)
    yield from memory(settings)
    sample = Images(grey, levels)
    flow, x = trained(settings, sample), sample(settings.batch // 2)
    yield from noise(settings, flow, x)
    yield from evaluation(settings, flow, x)
    yield from sampling(settings, flow, x.shape[1:])


if __name__ == "__main__":
    run(measure, Settings, __doc__)
