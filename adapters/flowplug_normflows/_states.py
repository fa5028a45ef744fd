"""State dicts of ``normflows.flows.Residual`` in the names of flowplug's."""

from typing import Any

from normflows.nets.lipschitz import InducedNormConv2d
from torch import Tensor, nn


def translate(state: dict[str, Any], prefix: str, own: Tensor) -> None:
    """Renames in place what stands behind the prefix, if normflows wrote it.

    Args:
        state: The state dict.
        prefix: Name of the flow in it, with a dot behind.
        own: The seed of eval-mode noise, which normflows has none of.
    """
    old = f"{prefix}iresblock."
    names = [name for name in state if name.startswith(old)]
    for name in names:
        value, rest = state.pop(name), name.removeprefix(old)
        # The rest is the estimator's: two constants, and statistics of its last draw.
        if rest.startswith("nnet."):
            state[f"{prefix}core.g.{rest.removeprefix('nnet.')}"] = value
    if names:
        state.setdefault(f"{prefix}core.noise_seed", own)


def fit(net: nn.Module, state: dict[str, Any], prefix: str) -> None:
    """Gives the vectors of normflows' convolutions, which depend on the size of images, the sizes they have in a state.

    Args:
        net: The network to be loaded.
        state: The state dict.
        prefix: Name of the network in it, with a dot behind.
    """
    for name, module in net.named_modules(prefix=prefix.removesuffix(".")):
        if isinstance(module, InducedNormConv2d):
            for vector in ("u", "v"):
                if (saved := state.get(f"{name}.{vector}")) is not None:
                    getattr(module, vector).resize_(saved.shape)
