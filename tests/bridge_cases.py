"""Transforms of each host, as the tests of the bridges build them."""

import normflows as nf
import torch
import zuko
from nflows import transforms as nt
from nflows.nn.nets import ResidualNet
from zuko.lazy import UnconditionalTransform


def net(context=None):
    return lambda inputs, outputs: ResidualNet(inputs, outputs, 8, context_features=context)


def rq_coupling(features=3, context=None):
    mask = torch.arange(features) % 2
    return nt.PiecewiseRationalQuadraticCouplingTransform(mask, net(context), tails="linear", tail_bound=3.0)


def maf(features=3, context=None):
    return nt.MaskedAffineAutoregressiveTransform(features, 8, context_features=context)


def masked_affine():
    return nf.flows.MaskedAffineFlow(torch.tensor([1.0, 0.0, 1.0]), nf.nets.MLP([3, 8, 3]), nf.nets.MLP([3, 8, 3]))


def normflows_spline(features=3, context=None):
    return nf.flows.CoupledRationalQuadraticSpline(features, 1, 8, num_context_channels=context)


def reversed_composite():
    parts = [nf.flows.LULinearPermute(3), nf.flows.MaskedAffineAutoregressive(3, 8, context_features=2)]
    return nf.flows.Reverse(nf.flows.Composite(parts))


def normflows_base():
    return nf.distributions.DiagGaussian(2, trainable=False)


def zuko_maf(features=3, context=0):
    return zuko.flows.MAF(features, context, transforms=2, hidden_features=(8,)).transform


def zuko_nsf(features=3, context=0):
    return zuko.flows.NSF(features, context, transforms=1, hidden_features=(8,)).transform


def rotation(features=3):
    return UnconditionalTransform(zuko.transforms.RotationTransform, torch.randn(features, features))


def affine():
    return UnconditionalTransform(zuko.transforms.MonotonicAffineTransform, torch.randn(3), torch.randn(3))


class Scale(nt.Transform):
    """Doubles one feature; its log-det comes in any of the forms that hosts use."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, inputs, context=None):
        del context
        log2 = torch.tensor(2.0, dtype=torch.float64).log()
        forms = {
            "int": 0,
            "scalar": log2,
            "view": log2.expand(len(inputs)),
            "float32": log2.float().repeat(len(inputs)),
        }
        return inputs if self.form == "int" else 2 * inputs, forms[self.form]
