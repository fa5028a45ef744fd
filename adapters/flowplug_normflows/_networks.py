"""normflows' own networks as residual branches: their Lipschitz bounds, and what they need before they have one."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from normflows import flows as nf
from normflows.nets.lipschitz import InducedNormConv2d, InducedNormLinear, LipschitzCNN, LipschitzMLP, Swish
from torch import nn

import flowplug as fp
from flowplug.hosts import require_ints, require_shape

_SIDE, _ITERATIONS = 16, 200


@fp.lipschitz_bound.register
def _(module: InducedNormLinear) -> fp.LipschitzBound:
    # normflows estimates the norm from below; the certificate is the norm of the weight it then uses.
    _require_2_norm(module)
    return fp.LipschitzBound(torch.linalg.matrix_norm(module.compute_weight(update=False), 2), 2.0)


@fp.lipschitz_bound.register
def _(module: InducedNormConv2d) -> fp.LipschitzBound:
    # The norm of the operator on images of any size; a stride leaves out pixels, which adds nothing. normflows only
    # shrinks weights: until it has seen an image, the one it is given bounds the one it will use.
    _require_2_norm(module)
    weight = module.compute_weight(update=False) if module.initialized else module.weight
    return fp.LipschitzBound(fp.SVD().measure(weight), 2.0)


def _require_2_norm(module: InducedNormConv2d | InducedNormLinear) -> None:
    if module.domain != 2 or module.codomain != 2:
        raise fp.LipschitzError(f"only {type(module).__name__}(domain=2, codomain=2) has a known bound")


@fp.lipschitz_bound.register
def _(module: Swish) -> fp.LipschitzBound:
    return fp.LipschitzBound(1.0, elementwise=True)


@fp.lipschitz_bound.register(LipschitzMLP)
@fp.lipschitz_bound.register(LipschitzCNN)
def _(module: LipschitzMLP | LipschitzCNN) -> fp.LipschitzBound:
    return fp.lipschitz_bound(module.net)


def event_shape(net: nn.Module) -> tuple[int | None, ...] | None:
    """That of normflows' networks, which do not say it themselves; else ``None``."""
    if isinstance(net, LipschitzMLP):
        return (net.channels[0],)
    if isinstance(net, LipschitzCNN):
        return (net.channels[0], None, None)
    return (None,) * 3 if any(isinstance(module, InducedNormConv2d) for module in net.modules()) else None


def initialize_(net: nn.Module) -> None:
    """Lets normflows' convolutions find the norms that they divide by.

    Left alone they do so on their first image, in few steps, and would allow more than their ``lipschitz_const`` until
    ``update_lipschitz`` is called; before the image they have no bound at all.
    """
    for module in net.modules():
        if isinstance(module, InducedNormConv2d) and not module.initialized:
            module.spatial_dims.fill_(_SIDE)
            with torch.no_grad():
                module.compute_weight(update=True, n_iterations=_ITERATIONS)


@contextlib.contextmanager
def advising(net: nn.Module) -> Iterator[None]:
    """Adds to a `LipschitzError` what lowers the bound of normflows' own networks."""
    try:
        yield
    except fp.LipschitzError as error:
        if not any(isinstance(module, InducedNormLinear | InducedNormConv2d) for module in net.modules()):
            raise
        raise fp.LipschitzError(
            f"{error}. normflows keeps its networks within lipschitz_const by calls alone: call "
            "normflows.utils.update_lipschitz(model, 50) after each optimizer step; where that does not do, build the "
            "network with a lower lipschitz_const"
        ) from error


def branch_of(net: nn.Module | int | Sequence[int], width: int, options: dict[str, Any]) -> nn.Module:
    """The network itself, or one that is made for events of this width or shape.

    Raises:
        TypeError: An option is given beside a network, or this is no network, or looks like the widths of one.
        ContextError: The network takes a context of another width.
    """
    require_ints("Residual", context_features=width)
    if not isinstance(net, nn.Module):
        require_shape("Residual", net=net)
        if isinstance(net, list) and len(net) > 2 and net[0] == net[-1]:  # as the networks of normflows take them
            raise TypeError(
                f"Residual(net={net}) looks like the widths of a network: pass normflows.nets.LipschitzMLP({net}), or "
                f"Residual({net[0]}, hidden_features={tuple(net[1:-1])}); a shape of events is a tuple"
            )
        return fp.LipschitzMLP(net, context_features=width, **options)
    name = type(net).__name__
    if isinstance(net, nf.Residual):
        raise TypeError(f"Residual(net=...) must be a network; got {name} of normflows: pass flow.iresblock.nnet")
    if isinstance(net, nf.Flow | fp.Transform):
        raise TypeError(
            f"Residual(net=...) must be a network g, whose flow is x + g(x); got {name}, which is a flow already"
        )
    if options:
        raise TypeError(
            f"Residual got {', '.join(options)} beside net, a {name} that is built already: give them to the network, "
            "or pass the width of the events as net"
        )
    built = getattr(net, "context_features", 0)
    if width not in (0, built):
        raise fp.ContextError(
            f"context_features={width}, but net takes a context of width {built}: build it with "
            f"context_features={width}"
        )
    return net
