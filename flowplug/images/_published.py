"""The residual flow for images as published, as one transform."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from flowplug._actnorm import ActNorm
from flowplug._arguments import require_ints, require_positive, require_sizes
from flowplug._composition import ComposedTransform
from flowplug._residual import ResidualTransform
from flowplug._transform import Transform
from flowplug.images._logit import Logit
from flowplug.images._squeeze import Squeeze
from flowplug.images._stack import image_shape
from flowplug.lipschitz import Gram, LipschitzCNN, LipschitzMLP, LipSwish, NetworkNorm, OperatorNorm
from flowplug.logdet import LogDet
from flowplug.solvers import Anderson, Solver


class PublishedImageStack(ComposedTransform):
    r"""The residual flow of the paper: convolutions at several scales, a squeeze between, dense blocks at the end.

    .. math:: \text{Logit}(\alpha) \to n_1 \times \text{Residual} \to [\text{Squeeze} \to n_i \times \text{Residual}]_i
        \to m \times \text{dense Residual}

    with an `ActNorm` before and after each residual transform. Each convolutional g is a `LipschitzCNN`, an activation
    before the first of three layers with kernels of 3, 1 and 3 pixels.

    Args:
        event_shape: Sizes ``(C, H, W)`` of the images.
        transforms: The numbers n of residual transforms at each scale.
        hidden_channels: Channels of their hidden layers.
        dense_transforms: The number m of dense ones at the end.
        dense_features: Widths of their hidden layers.
        alpha: As in `Logit`: 1e-5 for MNIST, 0.05 for photographs.
        context_features: Width of a context, as a one-hot label, 0 for none.
        bound: Upper bound on the Lipschitz constant of each network, in (0, 1).
        norm: The norm the bound holds in, as in `LipschitzCNN`.
        activation: Makes one activation per hidden layer, as in `LipschitzCNN`.
        logdet: The log-det in train mode, as in `ResidualTransform`.
        eval_logdet: The same in eval mode.
        solver: Finds the inverse of each residual transform.

    Raises:
        ValueError: ``dense_transforms`` is negative.
        ShapeError: ``event_shape`` is not ``(C, H, W)``, or its sides are not divisible by 2 as often as there are
            squeezes.
        FlowplugError: As in `LipschitzCNN` and `ResidualTransform`.

    Reference: Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling", NeurIPS 2019,
    appendix E.

    Example:
        >>> flow = PublishedImageStack((1, 8, 8), (1, 1), (16, 16), dense_transforms=1)
        >>> y, ladj = flow(torch.rand(5, 1, 8, 8))
        >>> y.shape, ladj.shape
        (torch.Size([5, 4, 4, 4]), torch.Size([5]))
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        transforms: Sequence[int] = (16, 16, 16),
        hidden_channels: Sequence[int] = (512, 512),
        *,
        dense_transforms: int = 4,
        dense_features: Sequence[int] = (128, 128),
        alpha: float = 0.05,
        context_features: int = 0,
        bound: float = 0.98,
        norm: OperatorNorm | NetworkNorm | Sequence[OperatorNorm] = Gram(),  # noqa: B008 -- frozen and stateless
        activation: Callable[[], nn.Module] = LipSwish,
        logdet: LogDet | None = None,
        eval_logdet: LogDet | None = None,
        solver: Solver = Anderson(),  # noqa: B008 -- frozen and stateless
    ) -> None:
        name = type(self).__name__
        first = shape = image_shape(name, event_shape)
        require_sizes(name, transforms=transforms, dense_features=dense_features)
        require_ints(name, dense_transforms=dense_transforms)
        require_positive(name, transforms=transforms, dense_features=dense_features)
        if dense_transforms < 0:
            raise ValueError(f"{name}(dense_transforms=...) must not be negative; got {dense_transforms}")

        def residual(g: nn.Module) -> ResidualTransform:
            return ResidualTransform(g, logdet=logdet, eval_logdet=eval_logdet, solver=solver)

        parts: list[Transform] = [Logit(alpha, event_dim=3)]
        for scale, count in enumerate(transforms):
            if scale:
                parts.append(Squeeze(2))
                shape = tuple(int(size or 0) for size in parts[-1].forward_shape(shape))
            parts.append(ActNorm(shape[0], event_dim=3))
            for _ in range(count):
                cnn = LipschitzCNN(
                    shape[0],
                    hidden_channels,
                    context_features=context_features,
                    bound=bound,
                    norm=norm,
                    activation=activation,
                    preactivation=True,
                )
                parts += [residual(cnn), ActNorm(shape[0], event_dim=3)]
        for _ in range(dense_transforms):
            mlp = LipschitzMLP(
                shape,
                dense_features,
                context_features=context_features,
                bound=bound,
                norm=norm,
                activation=activation,
            )
            parts += [residual(mlp), ActNorm(shape[0], event_dim=3)]
        super().__init__(*parts)
        self.event_shape = first
