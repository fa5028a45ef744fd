"""One table of constructors drives every law over the core, and again over every adapter.

A new transform is one line here.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import normflows as nf
import torch
from nflows.transforms.base import InverseNotAvailable
from torch import nn

import flowplug as fp
import flowplug_nflows
import flowplug_normflows
import flowplug_zuko


class HostView(nn.Module):
    """Shows a host's transform through the pair protocol, data to latent."""

    def __init__(self, host):
        super().__init__()
        self.host = host


class NflowsView(HostView):
    def forward(self, x, context=None):
        return self.host(x, context)

    def inverse(self, y, context=None):
        try:
            return self.host.inverse(y, context)
        except InverseNotAvailable as error:  # nflows' own, as its users expect
            raise error.__cause__ or error from None


class NormflowsView(HostView):
    def forward(self, x, context=None):
        return self.host.inverse(x, context)

    def inverse(self, y, context=None):
        return self.host.forward(y, context)


class ZukoView(HostView):
    def forward(self, x, context=None):
        return self.host(context).call_and_ladj(x)

    def inverse(self, y, context=None):
        return self.host(context).inv.call_and_ladj(y)


# Reasons why a row of the table is exempt from laws.
REFUSED_TWICE = {"the oracle needs a second derivative, which is refused by name": ("gradient of the ladj",)}
REFUSED_THRICE = {
    "the oracle needs derivatives that the inverse refuses by name": ("gradient of the ladj", "second derivatives")
}
RELATIVE = {"what is left in grad of W and b is no gradient, as test_gradients shows": ("derivative of the inverse",)}
HOSTS_VMAP = {
    "torch.func cannot follow the host's own masks by truth values, writes in place, and functions": (
        "rows by torch.func",
        "* / vmap",
        "* / ensemble",
    )
}
HOSTS_ENSEMBLE = {"torch.func cannot map over buffers of the host that say what to do": ("* / ensemble",)}
TIES = {"all rows start with the same norm, and rounding says which is the largest": ("* / ensemble",)}
HOSTS_WRITES = {
    "normflows writes estimates of its norms into buffers, in the forward pass": (
        "same numbers / torch.func",
        "start in any units",
        "start from few rows",
    ),
    "weights that normflows' own update has not followed may exceed the bound, and are refused": ("written weights",),
}
EIGHT_BITS = {
    "frequencies to 30 enlarge the rounding of bfloat16, and at D = 1 no sum averages it": ("same numbers / autocast",)
}
LONG_WEIGHTS = {
    "a roulette that may end at once enlarges the rounding of bfloat16 by its weights": ("same numbers / autocast",)
}
OWN_NOISE = {
    "copies have noise of their own where it is fixed, as zuko's transforms do in train mode": (
        "same numbers / deepcopy",
        "same numbers / averaged*",
    )
}
DEFAULT_DTYPE = {
    "normflows computes a part of it in torch's default dtype, and runs in no other": (
        "shape and dtype",
        "* / autocast",
        "* / dtype there and back",
    )
}
GRID = {"a grid has units of its own": ("start in any units",)}
CHANNELS = {
    "channels are what starts from data, and the latent has an entry for each pixel": (
        "start in any units",
        "start from few rows",
    )
}
HOSTS_DEVICE = {"the host makes tensors on torch's default device": ("* / another default device",)}
OWN = {**DEFAULT_DTYPE, **HOSTS_VMAP, **HOSTS_WRITES, **HOSTS_DEVICE}


@dataclass(frozen=True)
class Row:
    make: Callable[..., nn.Module]
    event: tuple[int, ...] = (3,)
    context: int = 0
    support: tuple[float, float] = (-math.inf, math.inf)
    # Why, and from what: names of laws, or of cells "law / way"; * stands for any.
    exempt: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def inputs(self, rows=4):
        low, high = self.support
        x = torch.randn(rows, *self.event) if math.isinf(low) else low + (high - low) * torch.rand(rows, *self.event)
        return x, torch.randn(rows, self.context) if self.context else None


def small_mlp(features=3, **keywords):
    return fp.LipschitzMLP(features, (8, 8), **keywords)


def residual(*, logdet=None, eval_logdet=None, solver=None, event=3, **keywords):
    solver = fp.Anderson() if solver is None else solver
    return fp.ResidualTransform(small_mlp(event, **keywords), logdet=logdet, eval_logdet=eval_logdet, solver=solver)


def sequential(**keywords):
    g = nn.Sequential(fp.LipschitzLinear(3, 8, bound=0.9), nn.Tanh(), fp.LipschitzLinear(8, 3, bound=0.9))
    return fp.ResidualTransform(g, **keywords)


def cnn(*, logdet=None, **keywords):
    return fp.ResidualTransform(fp.LipschitzCNN(2, (4, 4), **keywords), logdet=logdet)


def low_pass(**keywords):
    """Kernels that let some frequencies pass by nothing, at which rounding decides."""
    transform = cnn(**keywords)
    with torch.no_grad():
        for layer in transform.g.layers:
            layer.weight.fill_(1.0)
    return transform


def dense_net(*, logdet=None, **keywords):
    return fp.ResidualTransform(fp.LipschitzDenseNet(hidden_features=(4, 4), **keywords), logdet=logdet)


def composed(**keywords):
    parts = [fp.ActNorm(3), residual(), residual(context_features=2), fp.ActNorm(3)]
    return fp.ComposedTransform(*parts, **keywords)


def squeezed(**keywords):
    """Images to vectors."""
    parts = [fp.ActNorm(1, event_dim=3), fp.Squeeze(), fp.ResidualTransform(fp.LipschitzCNN(4, (4,)))]
    return fp.ComposedTransform(*parts, fp.Reshape((4, 1, 2), 8), fp.ActNorm(8), **keywords)


def scale(channels, *, squeeze=1, **keywords):
    channels = channels * squeeze**2
    g = fp.LipschitzCNN(channels, (4,), **keywords)
    return fp.ComposedTransform(fp.Squeeze(squeeze), fp.ActNorm(channels, event_dim=3), fp.ResidualTransform(g))


def multiscale(**keywords):
    return fp.MultiscaleTransform(scale(1, squeeze=2), scale(2, context_features=2), event_shape=(1, 4, 2), **keywords)


def image_flow(**keywords):
    return fp.ComposedTransform(fp.Logit(), fp.ActNorm(1, event_dim=3), scale(1, squeeze=2), **keywords)


def patches(**keywords):
    return fp.PatchTransform(residual(event=4, context_features=1 + 2 + 2), (1, 2, 4), 2, shift=1, **keywords)


def image_stack(**keywords):
    start = fp.PixelStart(levels=64, low=-8.0, high=8.0)
    return trained(fp.ImageStack((1, 2, 4), 2, (4,), context_features=2, start=start, **keywords))


def trained(stack):
    """The stack, whose residual transforms are no identities any more."""
    for module in stack.modules():
        if isinstance(module, fp.LipschitzMLP):
            nn.init.normal_(module.layers[-1].weight)
    return stack


def published(**keywords):
    return fp.PublishedImageStack((1, 2, 2), (1, 1), (2, 2), dense_transforms=1, dense_features=(4,), **keywords)


def inverse(**keywords):
    return fp.InverseTransform(residual(), **keywords)


def using(logdet):
    """A residual transform with this estimator in train and eval mode, and a branch it has finite variance for."""

    def make(**keywords):
        return residual(logdet=logdet, eval_logdet=logdet, bound=0.7, **keywords)

    return make


def on(view, make, **fixed):
    """A host's constructor behind its view."""

    def build(**keywords):
        return view(make(**fixed, **keywords))

    return build


def histogram(features=3, **keywords):
    """On a grid that holds the rows of the laws as well as what they start from."""
    return fp.HistogramGaussianization(features, levels=200, low=-75.0, high=175.0, **keywords)


UNIT = {"support": (0.0, 1.0), "exempt": GRID}
ROULETTE = fp.Roulette(fp.Geometric(0.4), exact=2)
MIXED = (fp.InducedNorm(math.inf, 2.0), fp.InducedNorm(2.0, 1.5), fp.InducedNorm(1.5, math.inf))
RECOMPUTE = fp.Recompute(fp.Neumann())

CORE = {
    "ActNorm": Row(lambda **k: fp.ActNorm(3, **k)),
    "Whitening": Row(lambda **k: fp.Whitening(3, **k)),
    "Histogram": Row(histogram, exempt=GRID),
    "Histogram pixels": Row(lambda **k: histogram((2, 2, 2), **k), event=(2, 2, 2), exempt=GRID),
    "Histogram channels": Row(lambda **k: histogram(2, event_dim=3, **k), event=(2, 2, 2), exempt=GRID),
    "Squeeze": Row(lambda **k: fp.Squeeze(2, **k), event=(1, 2, 4)),
    "Reshape": Row(lambda **k: fp.Reshape((2, 1, 2), 4, **k), event=(2, 1, 2)),
    "Logit": Row(lambda **k: fp.Logit(**k), event=(1, 2, 2), support=(0.0, 1.0)),
    "Logit vectors": Row(lambda **k: fp.Logit(0, event_dim=1, **k), event=(3,), support=(0.01, 0.99)),
    "Multiscale": Row(multiscale, event=(1, 4, 2), context=2, exempt=CHANNELS),
    "Image flow": Row(image_flow, event=(1, 2, 4), **UNIT),
    "Patches": Row(patches, event=(1, 2, 4), context=2),
    "Patches from data": Row(
        lambda **k: fp.PatchTransform(fp.Whitening(4), (1, 2, 4), 2, shift=1, **k), event=(1, 2, 4)
    ),
    "Image stack": Row(image_stack, event=(1, 2, 4), context=2, exempt=GRID),
    "Image stack of patches": Row(
        lambda **k: trained(fp.ImageStack((1, 2, 4), 1, (4,), start=fp.PatchStart(2), **k)), event=(1, 2, 4)
    ),
    "Published stack": Row(published, event=(1, 2, 2), **UNIT),
    "Squeezed": Row(squeezed, event=(1, 2, 4)),
    "Inverse squeezed": Row(lambda **k: fp.InverseTransform(squeezed(), **k), event=(8,), exempt=REFUSED_THRICE),
    "ActNorm image": Row(lambda **k: fp.ActNorm(2, event_dim=3, **k), event=(2, 2, 2)),
    "Marginals": Row(lambda **k: fp.MarginalGaussianization(3, **k)),
    "Marginals all the way": Row(lambda **k: fp.MarginalGaussianization(3, share=1.0, **k)),
    "Marginals pixels": Row(lambda **k: fp.MarginalGaussianization((2, 2, 2), knots=5, **k), event=(2, 2, 2)),
    "Marginals channels": Row(lambda **k: fp.MarginalGaussianization(2, event_dim=3, **k), event=(2, 2, 2)),
    "Residual": Row(residual),
    "Residual d=1": Row(lambda **k: residual(event=1, **k), event=(1,), exempt=EIGHT_BITS),
    "Residual narrow": Row(lambda **k: fp.ResidualTransform(fp.LipschitzMLP(3, (2, 4), **k))),
    "Residual context": Row(lambda **k: residual(context_features=2, **k), context=2),
    "Residual image": Row(lambda **k: residual(event=(2, 2, 2), **k), event=(2, 2, 2)),
    "Residual Gram": Row(lambda **k: residual(norm=fp.Gram(), **k)),
    "Residual LipSwish": Row(lambda **k: residual(activation=fp.LipSwish, **k)),
    "Residual CLipSwish": Row(lambda **k: residual(activation=fp.CLipSwish, **k), exempt=TIES),
    "Residual learned orders": Row(lambda **k: residual(norm=fp.LearnedOrder(), **k)),
    "Residual mixed norms": Row(lambda **k: residual(norm=MIXED, **k)),
    "Residual CNN": Row(cnn, event=(2, 2, 2)),
    "Residual CNN circular": Row(lambda **k: cnn(padding_mode="circular", **k), event=(2, 3, 3)),
    "Residual CNN preactivation": Row(
        lambda **k: cnn(preactivation=True, activation=fp.LipSwish, **k), event=(2, 2, 2)
    ),
    "Residual CNN low-pass": Row(low_pass, event=(2, 2, 2)),
    "Residual CNN context": Row(lambda **k: cnn(context_features=2, **k), event=(2, 2, 2), context=2),
    "Residual DenseNet": Row(lambda **k: dense_net(features=3, **k)),
    "Residual DenseNet context": Row(lambda **k: dense_net(features=3, context_features=2, **k), context=2),
    "Residual DenseNet image": Row(lambda **k: dense_net(features=2, kernel_size=3, **k), event=(2, 2, 2)),
    "Residual tanh": Row(lambda **k: residual(activation=nn.Tanh, **k)),
    "Residual FixedPoint": Row(lambda **k: residual(solver=fp.FixedPoint(), **k)),
    "Residual Sequential": Row(sequential),
    "Composed": Row(composed, context=2),
    "Inverse": Row(inverse, exempt=REFUSED_THRICE),
    "Stack": Row(
        lambda **k: fp.ResidualStack(3, 2, (8,), context_features=2, **k),
        context=2,
        exempt={**REFUSED_TWICE, **RELATIVE},
    ),
    "SmoothLeakyReLU": Row(lambda **k: fp.SmoothLeakyReLU(0.3, **k)),
    "TanhLinear image": Row(lambda **k: fp.TanhLinear(event_dim=3, **k), event=(2, 2, 2)),
    "Dense Euclidean": Row(lambda **k: fp.DenseTransform(3, gradient=fp.Euclidean(), **k), exempt=REFUSED_TWICE),
    "Dense": Row(lambda **k: fp.DenseTransform(3, **k), exempt={**REFUSED_TWICE, **RELATIVE}),
    "DenseConv1x1": Row(
        lambda **k: fp.DenseConv1x1(2, gradient=fp.Euclidean(), **k), event=(2, 3, 4), exempt=REFUSED_TWICE
    ),
    "CircularConv2d": Row(
        lambda **k: fp.CircularConv2d(2, activation=fp.TanhLinear(), gradient=fp.Euclidean(), **k),
        event=(2, 3, 4),
        exempt=REFUSED_TWICE,
    ),
    "CircularConv2d bare": Row(
        lambda **k: fp.CircularConv2d(2, gradient=fp.Euclidean(), **k),
        event=(2, 3, 4),
        exempt=REFUSED_TWICE,
    ),
    "Dense Deferred": Row(
        lambda **k: fp.DenseTransform(3, gradient=fp.Euclidean(), value=fp.Deferred(9), **k),
        exempt=REFUSED_TWICE,
    ),
    "Krylov": Row(using(fp.Krylov())),
    "Krylov context": Row(lambda **k: using(fp.Krylov())(context_features=2, **k), context=2),
    "Krylov d=1": Row(lambda **k: using(fp.Krylov())(event=1, **k), event=(1,), exempt=EIGHT_BITS),
    "Krylov image": Row(lambda **k: using(fp.Krylov())(event=(2, 2, 2), **k), event=(2, 2, 2)),
    "Krylov Gaussian": Row(using(fp.Krylov(probes=fp.Gaussian()))),
    "Krylov orthogonal": Row(using(fp.Krylov(probes=fp.Orthogonal(samples=2)))),
    "Krylov without control": Row(using(fp.Krylov(control=None))),
    "Krylov no exact term": Row(using(fp.Krylov(terms=fp.Roulette(fp.Geometric(0.5), exact=0)))),
    "Krylov Poisson": Row(using(fp.Krylov(terms=fp.Roulette(fp.Poisson(1.0), exact=1)))),
    "Krylov converged": Row(using(fp.Krylov(terms=fp.Converged(rtol=1e-6)))),
    "Krylov Recompute": Row(using(fp.Krylov(gradient=RECOMPUTE))),
    "Krylov Recompute context": Row(
        lambda **k: using(fp.Krylov(gradient=RECOMPUTE))(context_features=2, **k), context=2
    ),
    "PowerSeries": Row(using(fp.PowerSeries(terms=ROULETTE))),
    "PowerSeries Certified": Row(using(fp.PowerSeries())),
    "PowerSeries control": Row(using(fp.PowerSeries(terms=ROULETTE, control=fp.ExactTrace()))),
    "PowerSeries Recompute": Row(using(fp.PowerSeries(terms=ROULETTE, gradient=RECOMPUTE))),
    "PowerSeries context": Row(lambda **k: using(fp.PowerSeries(terms=ROULETTE))(context_features=2, **k), context=2),
    "PowerSeries d=1": Row(
        lambda **k: using(fp.PowerSeries(terms=ROULETTE))(event=1, **k), event=(1,), exempt=EIGHT_BITS
    ),
    "PowerSeries image": Row(lambda **k: using(fp.PowerSeries(terms=ROULETTE))(event=(2, 2, 2), **k), event=(2, 2, 2)),
    "PowerSeries Autograd": Row(using(fp.PowerSeries(terms=ROULETTE, gradient=fp.Autograd()))),
    "PowerSeries Gaussian": Row(using(fp.PowerSeries(terms=ROULETTE, probes=fp.Gaussian()))),
    "PowerSeries two probes": Row(using(fp.PowerSeries(terms=ROULETTE, probes=fp.Rademacher(samples=2)))),
    "PowerSeries no exact term": Row(
        using(fp.PowerSeries(terms=fp.Roulette(fp.Geometric(0.4), exact=0))), exempt=LONG_WEIGHTS
    ),
    "PowerSeries long": Row(using(fp.PowerSeries(terms=fp.Truncated(150)))),
}


def nflows_residual(**k):
    return on(NflowsView, flowplug_nflows.ResidualTransform, features=3, hidden_features=8)(**k)


def nflows_context(**k):
    make = flowplug_nflows.ResidualTransform
    return on(NflowsView, make, features=3, hidden_features=8, context_features=2)(**k)


def normflows_residual(**k):
    return on(NormflowsView, flowplug_normflows.Residual, net=small_mlp(context_features=2))(**k)


def normflows_features(**k):
    make, options = flowplug_normflows.Residual, {"hidden_features": (8, 8), "bound": 0.7, "context_features": 2}
    return on(NormflowsView, make, net=3, logdet=fp.Krylov(), eval_logdet=fp.Krylov(), **options)(**k)


def unwatched(net, **k):
    """normflows' flow around a network of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fp.UnboundedBranchWarning)  # between the manual updates nothing keeps it
        return on(NormflowsView, flowplug_normflows.Residual, net=net)(**k)


def normflows_own_net(**k):
    # The power iteration of normflows stops a little below the norm.
    return unwatched(nf.nets.LipschitzMLP([3, 8, 3], lipschitz_const=0.8, init_zeros=False), **k)


def normflows_own_cnn(**k):
    return unwatched(nf.nets.LipschitzCNN([2, 4, 2], [3, 3], lipschitz_const=0.6, init_zeros=False), **k)


def zuko_residual(**k):
    return on(ZukoView, flowplug_zuko.ResidualTransform, features=3, hidden_features=(8, 8))(**k)


def zuko_context(**k):
    make = flowplug_zuko.ResidualTransform
    return on(ZukoView, make, features=3, context=2, hidden_features=(8, 8))(**k)


def zuko_stochastic(**k):
    make = flowplug_zuko.ResidualTransform
    return on(ZukoView, make, features=3, hidden_features=(8, 8), exact=False, bound=0.7)(**k)


ADAPTERS = {
    "nflows": Row(nflows_residual),
    "nflows context": Row(nflows_context, context=2),
    "nflows Dense": Row(
        lambda **k: NflowsView(flowplug_nflows.DenseTransform(3, gradient=fp.Euclidean(), **k)),
        exempt=REFUSED_TWICE,
    ),
    "normflows Dense": Row(
        lambda **k: NormflowsView(flowplug_normflows.Dense(3, gradient=fp.Euclidean(), **k)),
        exempt=REFUSED_TWICE,
    ),
    "zuko Dense": Row(
        lambda **k: ZukoView(flowplug_zuko.DenseTransform(3, gradient=fp.Euclidean(), **k)),
        exempt=REFUSED_TWICE,
    ),
    "nflows Whitening": Row(lambda **k: NflowsView(flowplug_nflows.NflowsTransform(fp.Whitening(3), **k))),
    "nflows Marginals": Row(
        lambda **k: NflowsView(flowplug_nflows.NflowsTransform(fp.MarginalGaussianization(3), **k))
    ),
    "nflows Patches": Row(
        lambda **k: NflowsView(flowplug_nflows.NflowsTransform(patches(), **k)), event=(1, 2, 4), context=2
    ),
    "nflows Histogram": Row(lambda **k: NflowsView(flowplug_nflows.NflowsTransform(histogram(), **k)), exempt=GRID),
    "nflows ActNorm": Row(lambda **k: NflowsView(flowplug_nflows.NflowsTransform(fp.ActNorm(3), **k))),
    "nflows squeezed": Row(lambda **k: NflowsView(flowplug_nflows.NflowsTransform(squeezed(), **k)), event=(1, 2, 4)),
    "nflows image flow": Row(
        lambda **k: NflowsView(flowplug_nflows.NflowsTransform(image_flow(), **k)), event=(1, 2, 4), **UNIT
    ),
    "normflows": Row(normflows_residual, context=2),
    "normflows features": Row(normflows_features, context=2),
    "normflows own net": Row(normflows_own_net, exempt=OWN),
    "normflows own CNN": Row(normflows_own_cnn, event=(2, 2, 2), exempt=OWN),
    "normflows Whitening": Row(lambda **k: NormflowsView(flowplug_normflows.NormflowsFlow(fp.Whitening(3), **k))),
    "normflows Marginals": Row(
        lambda **k: NormflowsView(flowplug_normflows.NormflowsFlow(fp.MarginalGaussianization(3), **k))
    ),
    "normflows Patches": Row(
        lambda **k: NormflowsView(flowplug_normflows.NormflowsFlow(patches(), **k)), event=(1, 2, 4), context=2
    ),
    "normflows Histogram": Row(
        lambda **k: NormflowsView(flowplug_normflows.NormflowsFlow(histogram(), **k)), exempt=GRID
    ),
    "normflows ActNorm": Row(lambda **k: NormflowsView(flowplug_normflows.NormflowsFlow(fp.ActNorm(3), **k))),
    "normflows squeezed": Row(
        lambda **k: NormflowsView(flowplug_normflows.NormflowsFlow(squeezed(), **k)), event=(1, 2, 4)
    ),
    "normflows image flow": Row(
        lambda **k: NormflowsView(flowplug_normflows.NormflowsFlow(image_flow(), **k)), event=(1, 2, 4), **UNIT
    ),
    "zuko": Row(zuko_residual),
    "zuko context": Row(zuko_context, context=2),
    "zuko stochastic": Row(zuko_stochastic, exempt=OWN_NOISE),
    "zuko Whitening": Row(lambda **k: ZukoView(flowplug_zuko.ZukoTransform(fp.Whitening(3), **k))),
    "zuko Marginals": Row(lambda **k: ZukoView(flowplug_zuko.ZukoTransform(fp.MarginalGaussianization(3), **k))),
    "zuko Patches": Row(lambda **k: ZukoView(flowplug_zuko.ZukoTransform(patches(), **k)), event=(1, 2, 4), context=2),
    "zuko Histogram": Row(lambda **k: ZukoView(flowplug_zuko.ZukoTransform(histogram(), **k)), exempt=GRID),
    "zuko image flow": Row(
        lambda **k: ZukoView(flowplug_zuko.ZukoTransform(image_flow(), **k)), event=(1, 2, 4), **UNIT
    ),
    "zuko squeezed": Row(lambda **k: ZukoView(flowplug_zuko.ZukoTransform(squeezed(), **k)), event=(1, 2, 4)),
    "zuko ActNorm": Row(lambda **k: ZukoView(flowplug_zuko.ZukoTransform(fp.ActNorm(3), **k))),
}
