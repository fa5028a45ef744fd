"""Data, training and counting shared by the benchmarks and examples."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

import flowplug as fp


class Counting(nn.Module):
    """g, and how many samples it was evaluated on."""

    def __init__(self, g: nn.Module) -> None:
        super().__init__()
        self.g, self.samples = g, 0

    def forward(self, x: Tensor) -> Tensor:
        """``g(x)``."""
        self.samples += len(x)
        return self.g(x)


@fp.lipschitz_bound.register
def _(module: Counting) -> fp.LipschitzBound:
    return fp.lipschitz_bound(module.g)


def load_table(path: Path | None) -> tuple[Tensor, Tensor]:
    """Training and validation rows of an .npz file with arrays train and val, or of UCI Breast Cancer, standardised."""
    if path is None:
        rows = np.log(load_breast_cancer().data + 0.01)
        return standardised(np.delete(rows, np.s_[::5], axis=0), rows[::5])
    with np.load(path, allow_pickle=False) as file:
        return standardised(file["train"], file["val"])


def load_splits(path: Path | None) -> tuple[Tensor, Tensor, Tensor]:
    """As `load_table`, with test rows."""
    if path is None:
        train, val = load_table(None)
        return train, val[::2], val[1::2]
    with np.load(path, allow_pickle=False) as file:
        return standardised(file["train"], file["val"], file["test"])


def standardised(train: np.ndarray, *others: np.ndarray) -> tuple[Tensor, ...]:
    """Tensors, scaled by mean and standard deviation of the training rows."""
    mean, std = train.mean(0), train.std(0)
    return tuple(torch.tensor((part - mean) / std, dtype=torch.get_default_dtype()) for part in (train, *others))


def residual_flow(features: int, blocks: int, logdet: fp.LogDet | None = None) -> fp.ComposedTransform:
    """Residual transforms at their defaults, linear ones that start by whitening between."""
    parts: list[fp.Transform] = []
    for _ in range(blocks):
        parts += [fp.Whitening(features), fp.DenseTransform(features, activation=None, init=fp.ScaledIdentity())]
        parts.append(fp.ResidualTransform(fp.LipschitzMLP(features), logdet=logdet))
    return fp.ComposedTransform(*parts)


def log_prob(flow: fp.Transform, x: Tensor) -> Tensor:
    """Log-density in nats, ``(B,)``, under a standard normal base."""
    y, ladj = flow(x)
    return ladj - y.square().sum(1) / 2 - x.shape[1] / 2 * math.log(2 * math.pi)


def train(flow: fp.Transform, rows: Tensor, steps: int, batch: int = 256, lr: float = 5e-3) -> Iterator[float]:
    """Adam with a cosine schedule; yields the CPU seconds of training after every step."""
    optimizer = torch.optim.Adam(flow.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    spent = 0.0
    for _ in range(steps):
        start = time.process_time()
        descend(flow, rows, optimizer, batch)
        schedule.step()
        spent += time.process_time() - start
        yield spent


def train_for(flow: fp.Transform, rows: Tensor, seconds: float, batch: int = 256, lr: float = 5e-3) -> int:
    """Adam with a cosine schedule over so many CPU seconds; returns the number of steps."""
    optimizer = torch.optim.Adam(flow.parameters(), lr)
    start, steps = time.process_time(), 0
    while (spent := time.process_time() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * spent / seconds)) / 2
        descend(flow, rows, optimizer, batch)
        steps += 1
    return steps


def descend(flow: fp.Transform, rows: Tensor, optimizer: torch.optim.Optimizer, batch: int) -> None:
    """One step of maximum likelihood on random rows."""
    loss = -log_prob(flow, rows[torch.randint(len(rows), (batch,))]).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
