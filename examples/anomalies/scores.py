"""How well scores tell anomalies from normal rows, with errors; and scores without a flow."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from torch import Tensor

from common.paired import Estimate

DRAWS = 200  # of the bootstrap
Statistic = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # of normal scores, anomalous ones, weights of either


def auroc(normal: Tensor, anomalous: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """The chance that an anomaly has the higher score of the two, ties by half, for weights ``(..., rows)``."""
    above = (weight_from(normal, anomalous, w) + weight_from(normal, anomalous, w, ties=False)) / 2
    return (v * above).sum(-1) / (v.sum(-1) * w.sum(-1))


def average_precision(normal: Tensor, anomalous: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """The mean over anomalies of what part of all that score as high are anomalies, for weights ``(..., rows)``."""
    found, false = weight_from(anomalous, anomalous, w), weight_from(anomalous, normal, v)
    return (w * (found / (found + false)).nan_to_num()).sum(-1) / w.sum(-1)  # 0 / 0 has no weight


def weight_from(thresholds: Tensor, scores: Tensor, weights: Tensor, *, ties: bool = True) -> Tensor:
    """The weight of all scores above each threshold, or at it."""
    ordered, order = (-scores).sort()
    sums = torch.nn.functional.pad(weights[..., order].cumsum(-1), (1, 0))
    return sums[..., torch.searchsorted(ordered, -thresholds, right=ties)]


@dataclass(frozen=True)
class Judged:
    """A statistic of scores.

    Args:
        value: The statistic.
        draws: Of rows drawn anew ``(DRAWS,)``: the same rows in all that are judged on as many.
    """

    value: Tensor
    draws: Tensor

    def __sub__(self, other: "Judged") -> "Judged":
        return Judged(self.value - other.value, self.draws - other.draws)


def judge(statistic: Statistic, normal: Tensor, anomalous: Tensor) -> Judged:
    """The statistic of scores ``(rows,)`` of either kind, in percent; as many of either are drawn."""
    generator = torch.Generator("cpu").manual_seed(0)
    ones = [torch.ones(len(part), dtype=torch.float64) for part in (normal, anomalous)]
    drawn = [torch.randint(len(part), (DRAWS, len(part)), generator=generator) for part in ones]
    counts = [torch.zeros_like(rows, dtype=torch.float64).scatter_add_(1, rows, part.expand(rows.shape))
              for rows, part in zip(drawn, ones, strict=True)]  # fmt: skip
    return Judged(100 * statistic(normal, anomalous, *ones), 100 * statistic(normal, anomalous, *counts))


def estimated(judged: Judged) -> Estimate:
    """The statistic, and two standard deviations of it when rows are drawn anew.

    Example:
        >>> print(estimated(judge(auroc, torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.5, 3.0]))))
        +83.33 ± 43.15
    """
    return Estimate(float(judged.value), 2 * float(judged.draws.std()))


def mahalanobis(train: Tensor, rows: Tensor, seed: int) -> Tensor:
    """The squared distance from the mean in units of the covariance: of a Gaussian, -log p but for scale and shift."""
    del seed
    return torch.from_numpy(EmpiricalCovariance().fit(train.numpy()).mahalanobis(rows.numpy()))


def isolation_forest(train: Tensor, rows: Tensor, seed: int) -> Tensor:
    """As scikit-learn has it by default."""
    return -torch.from_numpy(IsolationForest(random_state=seed % 2**32).fit(train.numpy()).score_samples(rows.numpy()))


def local_outlier_factor(train: Tensor, rows: Tensor, seed: int) -> Tensor:
    """As scikit-learn has it by default: 20 neighbours."""
    del seed
    return -torch.from_numpy(LocalOutlierFactor(novelty=True).fit(train.numpy()).score_samples(rows.numpy()))


BASELINES: Mapping[str, Callable[[Tensor, Tensor, int], Tensor]] = {  # of train, the rows to score, and a seed
    "mahalanobis": mahalanobis,
    "isolation-forest": isolation_forest,
    "local-outlier-factor": local_outlier_factor,
}
