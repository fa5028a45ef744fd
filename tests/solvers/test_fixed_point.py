"""The plain iteration stops at once where it diverges."""

import pytest
import torch
from torch import nn

import flowplug as fp


class Growing(nn.Module):
    """An unbounded g of slope 1.5, registered as 0.9."""

    def forward(self, x):
        return -1.5 * x


@fp.lipschitz_bound.register
def _(module: Growing):
    return fp.LipschitzBound(0.9)


def test_divergence_stops_at_once():
    with pytest.raises(fp.NotConverged, match=r"8 of 8 samples was not found in 2 steps"):
        fp.ResidualTransform(Growing(), solver=fp.FixedPoint()).inverse(1 + torch.rand(8, 2))
