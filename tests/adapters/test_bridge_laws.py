"""Every law over the hosts' transforms as flowplug transforms."""

from importlib.metadata import version

import normflows as nf
import pytest
import torch
import zuko
from nflows import transforms as nt

from bridge_cases import (
    affine,
    maf,
    masked_affine,
    normflows_spline,
    reversed_composite,
    rotation,
    rq_coupling,
    zuko_maf,
    zuko_nsf,
)
from cases import DEFAULT_DTYPE, HOSTS_DEVICE, HOSTS_ENSEMBLE, HOSTS_VMAP, Row
from flowplug_nflows import from_nflows
from flowplug_normflows import from_normflows
from flowplug_zuko import from_zuko
from matrix import cells, check, print_summary


def nflows_composite(context=None):
    with torch.device("cpu"):  # the constructor of QRLinear mixes devices where another is the default
        parts = [nt.RandomPermutation(3), nt.QRLinear(3, 2), maf(context=context), nt.LULinear(3)]
    return nt.CompositeTransform(parts)


def normflows_autoregressive_spline():
    make = nf.flows.AutoregressiveRationalQuadraticSpline
    return make(3, 1, 8, num_context_channels=2, init_identity=False)


def zuko_naf(flow=zuko.flows.NAF):
    return flow(3, 2, transforms=1, hidden_features=(8,), network={"hidden_features": (8,)}).transform


def bridged(bridge, make, **row):
    """A row of the table: the bridge of a fresh transform."""
    images = {"event_dim": 3} if len(row.get("event", ())) == 3 else {}
    width = {"context_features": row["context"]} if bridge is from_zuko and "context" in row else {}
    return Row(lambda **k: bridge(make(), **images, **width, **k), **row)


IMAGE = (2, 2, 2)
# One for each host stands for all others where a way is dear, and in a first run.
TYPICAL = {"nflows MAF context", "normflows spline context", "zuko NSF"}

CONSTANT = {"the oracle needs a log-det that depends on something": ("gradient of the ladj",)}
BISECTED = {
    "zuko bisects to 1e-6, has no inference mode, and drops the networks' gradients in eval mode": (
        "inputs left alone",
        "round trip",
        "ladj of the inverse",
        "derivative of the inverse",
        "scales",
        "* / inference mode",
    )
}
UNSCALED = {"the host's own layers lose digits at inputs of scale 1e6 or, in single precision, 1e30": ("scales",)}
# zuko below 1.6, or on a GPU, loses as many with a context too.
BEFORE = tuple(map(int, version("zuko").split(".")[:2])) < (1, 6)
UNSCALED_BEFORE = UNSCALED if BEFORE or torch.cuda.is_available() else {}
HOSTS_START = {
    "the host's own start takes whatever comes first, in units near 1": ("start in any units", "start from few rows"),
    **HOSTS_DEVICE,
    **HOSTS_ENSEMBLE,
}
TWICE = {
    "its integral has no second derivative, which the oracle needs, and says nothing": (
        "gradient of the ladj",
        "second derivatives",
    )
}
NAF = {
    **BISECTED,
    **HOSTS_VMAP,
    **HOSTS_DEVICE,
    "the host calls autograd itself, which torch.func does not allow": ("* / torch.func",),
}
TRANSPOSED = {
    "its parameter is a transposed view, which neither FSDP nor views of all parameters take": (
        "written weights",
        "* / FSDP",
    )
}

TABLE = {
    "nflows LU": bridged(from_nflows, lambda: nt.LULinear(3)),
    "nflows RQ coupling": bridged(from_nflows, rq_coupling, exempt=HOSTS_VMAP),
    "nflows RQ coupling context": bridged(from_nflows, lambda: rq_coupling(context=2), context=2, exempt=HOSTS_VMAP),
    "nflows MAF": bridged(from_nflows, maf),
    "nflows MAF context": bridged(from_nflows, lambda: maf(context=2), context=2),
    "nflows inverse MAF": bridged(from_nflows, lambda: nt.InverseTransform(maf())),
    "nflows permutation": bridged(from_nflows, lambda: nt.RandomPermutation(3), exempt=CONSTANT),
    "nflows ActNorm": bridged(from_nflows, lambda: nt.ActNorm(3), exempt=HOSTS_START),
    "nflows composite": bridged(
        from_nflows, lambda: nflows_composite(2), context=2, exempt={**HOSTS_DEVICE, **HOSTS_ENSEMBLE}
    ),
    "nflows images": bridged(
        from_nflows,
        lambda: nt.CompositeTransform([nt.ActNorm(2), nt.OneByOneConvolution(2)]),
        event=IMAGE,
        exempt=HOSTS_START,
    ),
    "normflows coupling block": bridged(
        from_normflows, lambda: nf.flows.AffineCouplingBlock(nf.nets.MLP([2, 8, 2])), exempt=HOSTS_VMAP
    ),
    "normflows masked affine": bridged(from_normflows, masked_affine),
    "normflows spline": bridged(from_normflows, normflows_spline, exempt=HOSTS_VMAP),
    "normflows spline context": bridged(
        from_normflows, lambda: normflows_spline(context=2), context=2, exempt=HOSTS_VMAP
    ),
    "normflows autoregressive spline": bridged(
        from_normflows, normflows_autoregressive_spline, context=2, exempt=HOSTS_VMAP
    ),
    "normflows MAF": bridged(from_normflows, lambda: nf.flows.MaskedAffineAutoregressive(3, 8)),
    "normflows affine": bridged(from_normflows, lambda: nf.flows.InvertibleAffine(3)),
    "normflows 1x1": bridged(from_normflows, lambda: nf.flows.Invertible1x1Conv(2), event=IMAGE, exempt=TRANSPOSED),
    "normflows permutation": bridged(from_normflows, lambda: nf.flows.Permute(3), exempt=CONSTANT),
    "normflows ActNorm": bridged(from_normflows, lambda: nf.flows.ActNorm((3,)), exempt=HOSTS_START),
    "normflows Glow": bridged(
        from_normflows, lambda: nf.flows.GlowBlock(2, 8), event=IMAGE, exempt={**HOSTS_VMAP, **HOSTS_START}
    ),
    "normflows shift": bridged(from_normflows, lambda: nf.transforms.Shift(), exempt=CONSTANT),
    "normflows planar": bridged(from_normflows, lambda: nf.flows.Planar((3,), act="leaky_relu"), exempt=DEFAULT_DTYPE),
    "normflows composite": bridged(from_normflows, reversed_composite, context=2, exempt=UNSCALED),
    "normflows list": bridged(
        from_normflows, lambda: [normflows_spline(context=2), masked_affine()], context=2, exempt=HOSTS_VMAP
    ),
    "zuko MAF": bridged(from_zuko, zuko_maf, exempt=UNSCALED),
    "zuko MAF context": bridged(from_zuko, lambda: zuko_maf(context=2), context=2, exempt=UNSCALED_BEFORE),
    "zuko NSF": bridged(from_zuko, lambda: zuko_nsf(context=2), context=2),
    "zuko coupling": bridged(
        from_zuko, lambda: zuko.flows.GeneralCouplingTransform(3, hidden_features=(8,)), exempt=HOSTS_ENSEMBLE
    ),
    "zuko inverse": bridged(from_zuko, lambda: zuko_maf().inv),
    "zuko rotation": bridged(from_zuko, rotation, exempt=CONSTANT),
    "zuko element-wise": bridged(from_zuko, affine),
    "zuko NAF": bridged(from_zuko, zuko_naf, context=2, exempt=NAF),
    "zuko UNAF": bridged(from_zuko, lambda: zuko_naf(zuko.flows.UNAF), context=2, exempt={**NAF, **TWICE}),
}


@pytest.mark.parametrize(("name", "law", "way"), cells(TABLE, typical=TYPICAL))
def test_law(name, law, way):
    check(TABLE[name], law, way)


def test_cells_are_counted():
    print_summary("bridges", TABLE, typical=TYPICAL)


def test_reverse_and_composite_map_as_in_normflows():
    flow = nf.flows.Reverse(
        nf.flows.Composite([nf.flows.LULinearPermute(3), nf.flows.MaskedAffineAutoregressive(3, 8)])
    )
    transform, x = from_normflows(flow), torch.randn(4, 3)
    torch.testing.assert_close(transform(x), flow.inverse(x))
    torch.testing.assert_close(transform.inverse(x), flow(x))


@pytest.mark.parametrize("name", ["zuko NAF", "zuko UNAF"])
def test_a_bisected_inverse_is_as_good_as_zukos(name):
    row = TABLE[name]
    (x, context), transform = row.inputs(), row.make()
    y, ladj = transform(x, context)
    back, inverse_ladj = transform.inverse(y, context)
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)
    torch.testing.assert_close(inverse_ladj, -ladj, atol=1e-4, rtol=0)
    with torch.no_grad():
        assert not any(tensor.requires_grad for tensor in transform(x, context))
