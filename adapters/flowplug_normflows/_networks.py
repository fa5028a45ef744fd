"""The Lipschitz bounds of normflows' own networks."""

import torch
from normflows.nets.lipschitz import InducedNormLinear, LipschitzMLP, Swish

import flowplug as fp


@fp.lipschitz_bound.register
def _(module: InducedNormLinear) -> fp.LipschitzBound:
    # normflows estimates the norm from below; the certificate is the norm of the weight it then uses.
    if module.domain != 2 or module.codomain != 2:
        raise fp.LipschitzError("only InducedNormLinear(domain=2, codomain=2) has a known bound")
    return fp.LipschitzBound(torch.linalg.matrix_norm(module.compute_weight(update=False), 2), 2.0)


@fp.lipschitz_bound.register
def _(module: Swish) -> fp.LipschitzBound:
    return fp.LipschitzBound(1.0, elementwise=True)


@fp.lipschitz_bound.register
def _(module: LipschitzMLP) -> fp.LipschitzBound:
    return fp.lipschitz_bound(module.net)
