"""Nets that classify: of residual blocks with a bound, which can be inverted, or without."""

from collections.abc import Callable

from torch import Tensor, nn

import flowplug as fp
from common.runs import Config
from images.data import Images
from images.models import squeezes

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "lipswish": fp.LipSwish,
    "sine": fp.Sine,
    "sine-huber": fp.SineHuber,
}


class PlainBlock(fp.Transform):
    """``x + g(x)`` with any g: a block of a ResNet, which has no inverse, and of which no log-det is known."""

    event_dim = 3

    def __init__(self, channels: int, hidden: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.event_shape = (channels, None, None)
        self.g = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1),
            activation(),
            nn.Conv2d(hidden, hidden, 1),
            activation(),
            nn.Conv2d(hidden, channels, 3, padding=1),
        )

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        return x + self.g(x), x.new_zeros(x.shape[:-3])

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise fp.InverseNotAvailable("PlainBlock: x + g(x) without a bound on g has no inverse")


def net(images: Images, config: Config, hidden: int) -> fp.ComposedTransform:
    """The features of a net: blocks at the scale of the images once squeezed, and at the next where there is room."""
    channels, activation = images.event_shape[0], ACTIVATIONS[config["activation"]]
    parts: list[fp.Transform] = [fp.ActNorm(channels, event_dim=3)]
    for _ in range(max(1, squeezes(images, 2))):
        channels *= 4
        parts.append(fp.Squeeze(2))
        for _ in range(config["blocks"]):
            if config["bound"] is None:
                parts.append(PlainBlock(channels, hidden, activation))
            else:
                g = fp.LipschitzCNN(channels, (hidden, hidden), bound=config["bound"], activation=activation)
                parts.append(fp.ResidualTransform(g))
            parts.append(fp.ActNorm(channels, event_dim=3))
    return fp.ComposedTransform(*parts)
