"""Classifiers by the features of a flow, alone or beside its density."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

import flowplug as fp
from common.densities import Model, standard_normal
from flowplug import hosts


class Branch(nn.Module):
    """3x3 convolution, ActNorm, ReLU, and means over pixels: images ``(B, C, H, W)`` to features ``(B, F pool^2)``."""

    def __init__(self, channels: int, features: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        self.convolution = nn.Conv2d(channels, features, 3, padding=1)
        self.actnorm = fp.ActNorm(features, event_dim=3)

    def forward(self, x: Tensor) -> Tensor:
        """The features."""
        with fp.no_logdet():
            y: Tensor = self.actnorm(self.convolution(x))[0]
        return functional.adaptive_avg_pool2d(functional.relu(y), self.pool).flatten(1)


class Classifier(Model):
    r"""A flow and a classifier by its features: :math:`\lambda \log p(x) + \log p(y | x)` of each row.

    Args:
        stack: The flow, of images of known sizes, data to latent.
        views: By the names of parts, as `flowplug.ComposedTransform.forward_with_features` has them, what is done to
            their outputs before a branch sees these; ``None`` for nothing.
        event_shape: Sizes of the images.
        classes: How many.
        weight: The :math:`\lambda`; at 0 no log-det is computed in training.
        features: Channels of each branch.
        pool: Means a side that are taken of each: 1 as published, more tell where in the image.

    Reference: Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling", NeurIPS 2019,
    eq. (12) and appendix E.
    """

    def __init__(
        self,
        stack: fp.ComposedTransform,
        views: Mapping[str, fp.Transform | None],
        event_shape: Sequence[int],
        classes: int,
        weight: float,
        features: int,
        pool: int,
    ) -> None:
        super().__init__()
        self.stack, self.names, self.weight = stack, list(views), weight
        self.views = nn.ModuleDict({str(i): view for i, view in enumerate(views.values()) if view is not None})
        shape: tuple[int | None, ...] = tuple(event_shape)
        sizes = dict[str, tuple[int | None, ...]]()
        for number, part in enumerate(stack.transforms):
            shape = cast(fp.Transform, part).forward_shape(shape)
            sizes[f"transforms.{number}"] = shape
        seen = [sizes[name] if view is None else view.forward_shape(sizes[name]) for name, view in views.items()]
        self.branches = nn.ModuleList(Branch(int(shape[0] or 0), features, pool) for shape in seen)
        self.linear = nn.Linear(features * pool**2 * len(views), classes)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Sets what starts from data."""
        with hosts.starting(self):
            self.outputs(x)

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``log p(x)`` ``(B,)`` in nats, and logits ``(B, classes)``."""
        y, ladj, found = self.stack.forward_with_features(x, names=self.names)
        seen = [self.seen(number, found[name]) for number, name in enumerate(self.names)]
        features = [branch(view) for branch, view in zip(self.branches, seen, strict=True)]
        return ladj + standard_normal(y), self.linear(torch.cat(features, 1))

    def seen(self, number: int, output: Tensor) -> Tensor:
        """What a branch sees of the output of its part."""
        if str(number) not in self.views:
            return output
        with fp.no_logdet():
            y: Tensor = self.views[str(number)](output)[0]
        return y

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
