"""Classifiers by the features of a flow, alone or beside its density."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

import flowplug as fp
from common.densities import Model, standard_normal
from flowplug import hosts


class Branch(nn.Module):
    """3x3 convolution, ActNorm, ReLU, and the mean over pixels: images ``(B, C, H, W)`` to features ``(B, F)``."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, features, 3, padding=1)
        self.actnorm = fp.ActNorm(features, event_dim=3)

    def forward(self, x: Tensor) -> Tensor:
        """The features."""
        with fp.no_logdet():
            y: Tensor = self.actnorm(self.convolution(x))[0]
        return functional.relu(y).mean((-2, -1))


class Classifier(Model):
    r"""A flow and a classifier by its features: :math:`\lambda \log p(x) + \log p(y | x)` of each row.

    Args:
        stack: The flow, of images of known sizes, data to latent.
        names: Of the parts whose outputs have a branch, as `flowplug.ComposedTransform.forward_with_features` has them.
        event_shape: Sizes of the images.
        classes: How many.
        weight: The :math:`\lambda`; at 0 no log-det is computed in training.
        features: Of each branch.

    Reference: Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling", NeurIPS 2019,
    eq. (12) and appendix E.
    """

    def __init__(
        self,
        stack: fp.ComposedTransform,
        names: Sequence[str],
        event_shape: Sequence[int],
        classes: int,
        weight: float,
        features: int,
    ) -> None:
        super().__init__()
        self.stack, self.names, self.weight = stack, list(names), weight
        shape: tuple[int | None, ...] = tuple(event_shape)
        channels = dict[str, int]()
        for number, part in enumerate(stack.transforms):
            shape = cast(fp.Transform, part).forward_shape(shape)
            channels[f"transforms.{number}"] = int(shape[0] or 0)
        self.branches = nn.ModuleList(Branch(channels[name], features) for name in names)
        self.linear = nn.Linear(features * len(names), classes)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Sets what starts from data."""
        with hosts.starting(self):
            self.outputs(x)

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``log p(x)`` ``(B,)`` in nats, and logits ``(B, classes)``."""
        y, ladj, found = self.stack.forward_with_features(x, names=self.names)
        features = [branch(found[name]) for branch, name in zip(self.branches, self.names, strict=True)]
        return ladj + standard_normal(y), self.linear(torch.cat(features, 1))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """What is maximised ``(B,)``, in nats."""
        if self.weight:
            log_prob, logits = self.outputs(x)
            return self.weight * log_prob - functional.cross_entropy(logits, labels, reduction="none")
        with fp.no_logdet():
            logits = self.outputs(x)[1]
        return -functional.cross_entropy(logits, labels, reduction="none")


class Judged(nn.Module):
    """What a classifier is judged by: ``log p(x)``, ``log p(y | x)``, and whether the likeliest label is right."""

    def __init__(self, classifier: Classifier, *, density: bool) -> None:
        super().__init__()
        self.classifier, self.density = classifier, density

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """The three, ``(B, 3)``; without ``density`` the first is 0."""
        if self.density:
            log_prob, logits = self.classifier.outputs(x)
        else:
            with fp.no_logdet():
                logits = self.classifier.outputs(x)[1]
            log_prob = logits.new_zeros(len(x))
        likelihood = -functional.cross_entropy(logits, labels, reduction="none")
        return torch.stack([log_prob, likelihood, (logits.argmax(1) == labels).to(logits)], 1)
