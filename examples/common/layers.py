"""Layers of the hosts, as their papers and documentation build them; each a list, from data to latent."""

import nflows.nn.nets
import nflows.transforms
import nflows.utils
import normflows as nf
import zuko
from torch import nn


def spline_coupling(features: int, hidden: int, i: int, *, tail_bound: float = 5.0) -> list[nn.Module]:
    """A rational-quadratic spline coupling of nflows after an LU layer (Durkan et al. 2019); masks alternate with i."""

    def network(inputs: int, outputs: int) -> nn.Module:
        net: nn.Module = nflows.nn.nets.ResidualNet(inputs, outputs, hidden_features=hidden, num_blocks=1)
        return net

    mask = nflows.utils.create_alternating_binary_mask(features, even=i % 2 == 0)
    coupling = nflows.transforms.PiecewiseRationalQuadraticCouplingTransform(
        mask, network, num_bins=8, tails="linear", tail_bound=tail_bound
    )
    return [nflows.transforms.LULinear(features), coupling]


def affine_coupling(features: int, hidden: int, _: int) -> list[nn.Module]:
    """An affine coupling of normflows (Dinh et al. 2017) after an LU layer."""
    half = (features + 1) // 2
    network = nf.nets.MLP([half, hidden, hidden, 2 * (features - half)], init_zeros=True)
    return [nf.flows.LULinearPermute(features), nf.flows.AffineCouplingBlock(network, scale_map="sigmoid")]


def autoregression(kind: type[zuko.flows.MAF], features: int, hidden: int, _: int) -> list[nn.Module]:
    """A masked autoregression of zuko in a random order, affine or of splines (Papamakarios 2017, Durkan 2019)."""
    flow = kind(features, transforms=1, hidden_features=(hidden, hidden), randperm=True)
    return list(flow.transform.transforms)


def residual_block(widths: list[int]) -> list[nn.Module]:
    """A residual block of normflows as its documentation builds it, after an ActNorm; ``after_step`` bounds it.

    ``widths`` are those of its network, features first and last.
    """
    net = nf.nets.LipschitzMLP(widths, init_zeros=True, lipschitz_const=0.9)
    block = nf.flows.Residual(net)
    for unused in (block.iresblock.geom_p, block.iresblock.lamb):  # DistributedDataParallel refuses them
        unused.requires_grad_(requires_grad=False)
    return [nf.flows.ActNorm(widths[0]), block]
