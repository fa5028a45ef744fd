"""The bridge: transforms of each host as flowplug transforms, and so in the two other hosts."""

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import normflows as nf
import pytest
import torch
import zuko
from nflows import transforms as nt
from nflows.distributions import StandardNormal
from nflows.flows import Flow as NflowsFlow
from nflows.nn.nets import ResidualNet
from normflows.flows.flow_test import FlowTest
from torch import nn
from zuko.lazy import LazyComposedTransform, UnconditionalTransform

import flowplug as fp
from cases import Row, residual
from flowplug.testing import LAWS, Case
from flowplug_nflows import NflowsTransform, from_nflows
from flowplug_normflows import NormflowsFlow, from_normflows
from flowplug_zuko import ZukoTransform, from_zuko
from helpers import integral
from host_checks import ZukoChecks, check_forward_inverse, train


def net(context=None):
    return lambda inputs, outputs: ResidualNet(inputs, outputs, 8, context_features=context)


def rq_coupling(features=3, context=None):
    mask = torch.arange(features) % 2
    return nt.PiecewiseRationalQuadraticCouplingTransform(mask, net(context), tails="linear", tail_bound=3.0)


def maf(features=3, context=None):
    return nt.MaskedAffineAutoregressiveTransform(features, 8, context_features=context)


def nflows_composite(context=None):
    with torch.device("cpu"):  # the constructor of QRLinear mixes devices where another is the default
        parts = [nt.RandomPermutation(3), nt.QRLinear(3, 2), maf(context=context), nt.LULinear(3)]
    return nt.CompositeTransform(parts)


def masked_affine():
    return nf.flows.MaskedAffineFlow(torch.tensor([1.0, 0.0, 1.0]), nf.nets.MLP([3, 8, 3]), nf.nets.MLP([3, 8, 3]))


def normflows_spline(features=3, context=None):
    return nf.flows.CoupledRationalQuadraticSpline(features, 1, 8, num_context_channels=context)


def normflows_autoregressive_spline():
    make = nf.flows.AutoregressiveRationalQuadraticSpline
    return make(3, 1, 8, num_context_channels=2, init_identity=False)


def reversed_composite():
    parts = [nf.flows.LULinearPermute(3), nf.flows.MaskedAffineAutoregressive(3, 8, context_features=2)]
    return nf.flows.Reverse(nf.flows.Composite(parts))


def zuko_maf(features=3, context=0):
    return zuko.flows.MAF(features, context, transforms=2, hidden_features=(8,)).transform


def zuko_nsf(features=3, context=0):
    return zuko.flows.NSF(features, context, transforms=1, hidden_features=(8,)).transform


def zuko_naf(flow=zuko.flows.NAF):
    return flow(3, 2, transforms=1, hidden_features=(8,), network={"hidden_features": (8,)}).transform


def rotation(features=3):
    return UnconditionalTransform(zuko.transforms.RotationTransform, torch.randn(features, features))


def affine():
    return UnconditionalTransform(zuko.transforms.MonotonicAffineTransform, torch.randn(3), torch.randn(3))


def bridged(bridge, make, **row):
    """A row of the table: the bridge of a fresh transform."""
    images = {"event_dim": 3} if len(row.get("event", ())) == 3 else {}
    width = {"context_features": row["context"]} if bridge is from_zuko and "context" in row else {}
    return Row(lambda **k: bridge(make(), **images, **width, **k), **row)


IMAGE = (2, 2, 2)
# The oracle of this law needs a log-det that depends on something.
CONSTANT = ("gradient of the ladj",)
# zuko bisects to 1e-6, has no inference mode, and drops the networks' gradients in eval mode.
BISECTED = ("inputs left alone", "round trip", "ladj of the inverse", "derivative of the inverse")

TABLE = {
    "nflows LU": bridged(from_nflows, lambda: nt.LULinear(3)),
    "nflows RQ coupling": bridged(from_nflows, rq_coupling),
    "nflows RQ coupling context": bridged(from_nflows, lambda: rq_coupling(context=2), context=2),
    "nflows MAF": bridged(from_nflows, maf),
    "nflows MAF context": bridged(from_nflows, lambda: maf(context=2), context=2),
    "nflows inverse MAF": bridged(from_nflows, lambda: nt.InverseTransform(maf())),
    "nflows permutation": bridged(from_nflows, lambda: nt.RandomPermutation(3), exempt=CONSTANT),
    "nflows ActNorm": bridged(from_nflows, lambda: nt.ActNorm(3)),
    "nflows composite": bridged(from_nflows, lambda: nflows_composite(2), context=2),
    "nflows images": bridged(
        from_nflows, lambda: nt.CompositeTransform([nt.ActNorm(2), nt.OneByOneConvolution(2)]), event=IMAGE
    ),
    "normflows coupling block": bridged(from_normflows, lambda: nf.flows.AffineCouplingBlock(nf.nets.MLP([2, 8, 2]))),
    "normflows masked affine": bridged(from_normflows, masked_affine),
    "normflows spline": bridged(from_normflows, normflows_spline),
    "normflows spline context": bridged(from_normflows, lambda: normflows_spline(context=2), context=2),
    "normflows autoregressive spline": bridged(from_normflows, normflows_autoregressive_spline, context=2),
    "normflows MAF": bridged(from_normflows, lambda: nf.flows.MaskedAffineAutoregressive(3, 8)),
    "normflows affine": bridged(from_normflows, lambda: nf.flows.InvertibleAffine(3)),
    "normflows 1x1": bridged(from_normflows, lambda: nf.flows.Invertible1x1Conv(2), event=IMAGE),
    "normflows permutation": bridged(from_normflows, lambda: nf.flows.Permute(3), exempt=CONSTANT),
    "normflows ActNorm": bridged(from_normflows, lambda: nf.flows.ActNorm((3,))),
    "normflows Glow": bridged(from_normflows, lambda: nf.flows.GlowBlock(2, 8), event=IMAGE),
    "normflows shift": bridged(from_normflows, lambda: nf.transforms.Shift(), exempt=CONSTANT),
    # normflows computes it in torch's default dtype.
    "normflows planar": bridged(
        from_normflows, lambda: nf.flows.Planar((3,), act="leaky_relu"), exempt=("shape and dtype",)
    ),
    "normflows composite": bridged(from_normflows, reversed_composite, context=2),
    "normflows list": bridged(from_normflows, lambda: [normflows_spline(context=2), masked_affine()], context=2),
    "zuko MAF": bridged(from_zuko, zuko_maf),
    "zuko MAF context": bridged(from_zuko, lambda: zuko_maf(context=2), context=2),
    "zuko NSF": bridged(from_zuko, lambda: zuko_nsf(context=2), context=2),
    "zuko coupling": bridged(from_zuko, lambda: zuko.flows.GeneralCouplingTransform(3, hidden_features=(8,))),
    "zuko inverse": bridged(from_zuko, lambda: zuko_maf().inv),
    "zuko rotation": bridged(from_zuko, rotation, exempt=CONSTANT),
    "zuko element-wise": bridged(from_zuko, affine),
    "zuko NAF": bridged(from_zuko, zuko_naf, context=2, exempt=BISECTED),
    # Its integral has no second derivative, which the oracle needs.
    "zuko UNAF": bridged(from_zuko, lambda: zuko_naf(zuko.flows.UNAF), context=2, exempt=(*BISECTED, *CONSTANT)),
}


@pytest.mark.parametrize(("name", "law"), [(n, law) for n in TABLE for law in LAWS if law not in TABLE[n].exempt])
def test_law(name, law):
    row = TABLE[name]
    LAWS[law](Case(row.make, *row.inputs()))


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


@dataclass(frozen=True)
class Host:
    """How to bridge a host's transforms, and how to make and use a flow of them in that host."""

    native: Callable[[int], list[Any]]  # context width -> transforms of two features
    bridge: Callable[[list[Any], int], fp.Transform]
    wrap: Callable[[fp.Transform], Any]
    flow: Callable[[list[Any]], nn.Module]  # in data-to-latent order
    log_prob: Callable[..., torch.Tensor]
    sample: Callable[[nn.Module], tuple[torch.Tensor, torch.Tensor]]


def nflows_native(context):
    return [rq_coupling(2, context or None), maf(2, context or None), nt.LULinear(2)]


def normflows_native(context):
    coupling = nf.flows.AffineCouplingBlock(nf.nets.MLP([1, 8, 2]))
    unconditional = [] if context else [coupling]
    return [normflows_spline(2, context or None), nf.flows.LULinearPermute(2), *unconditional]


def zuko_native(context):
    return [*zuko_maf(2, context).transforms, *zuko_nsf(2, context).transforms, rotation(2)]


def normflows_base():
    return nf.distributions.DiagGaussian(2, trainable=False)


def normflows_flow(parts):
    # Latent to data, unlike the two others.
    return nf.NormalizingFlow(normflows_base(), parts[::-1])


def normflows_log_prob(flow, x, context=None):
    if context is None:
        return flow.log_prob(x)
    return nf.ConditionalNormalizingFlow(flow.q0, flow.flows).log_prob(x, context)


HOSTS = {
    "nflows": Host(
        nflows_native,
        lambda parts, _: from_nflows(nt.CompositeTransform(parts)),
        NflowsTransform,
        lambda parts: NflowsFlow(nt.CompositeTransform(parts), StandardNormal([2])),
        lambda flow, x, context=None: flow.log_prob(x, context),
        lambda flow: flow.sample_and_log_prob(32),
    ),
    "normflows": Host(
        normflows_native,
        lambda parts, _: from_normflows(parts[::-1]),
        NormflowsFlow,
        normflows_flow,
        normflows_log_prob,
        lambda flow: flow.sample(32),
    ),
    "zuko": Host(
        zuko_native,
        lambda parts, context: from_zuko(LazyComposedTransform(*parts), context_features=context),
        ZukoTransform,
        lambda parts: zuko.flows.Flow(parts, zuko.flows.MAF(2).base),
        lambda flow, x, context=None: flow(context).log_prob(x),
        lambda flow: flow().rsample_and_log_prob((32,)),
    ),
}
PAIRS = [(guest, host) for guest in HOSTS for host in HOSTS if guest != host]
GUESTS = [*PAIRS, *(("all", host) for host in HOSTS)]


def guests(guest, context=0):
    """flowplug transforms of two features: one host's, or every host's around one of flowplug's own."""
    names = HOSTS if guest == "all" else [guest]
    cores = [HOSTS[name].bridge(HOSTS[name].native(context), context) for name in names]
    return [*cores[:1], residual(event=2, context_features=context), *cores[1:]] if guest == "all" else cores


def mixed_flow(guest, host):
    """A flow in ``host`` of its own transforms and those of the guest."""
    host = HOSTS[host]
    first, *others = host.native(0)
    return host.flow([first, *map(host.wrap, guests(guest)), *others, host.wrap(fp.ActNorm(2))])


def tolerance():
    """Of chains of the hosts' transforms."""
    return {"atol": 1e-9 if torch.get_default_dtype() == torch.float64 else 1e-3, "rtol": 0}


@pytest.mark.parametrize(("guest", "host"), PAIRS)
@pytest.mark.parametrize("context", [0, 2])
def test_a_flow_has_the_same_density_in_every_host(guest, host, context):
    x, c = torch.randn(16, 2), torch.randn(16, context) if context else None
    guest, host = HOSTS[guest], HOSTS[host]
    parts = guest.native(context)
    flow = host.flow([host.wrap(guest.bridge(parts, context))])
    torch.testing.assert_close(host.log_prob(flow, x, c), guest.log_prob(guest.flow(parts), x, c), **tolerance())


@pytest.mark.parametrize(("guest", "host"), GUESTS)
class TestMixedFlows:
    def test_they_train_and_sample(self, guest, host):
        flow, x = mixed_flow(guest, host), 1 + torch.randn(64, 2)
        train(flow, lambda: -HOSTS[host].log_prob(flow, x).mean())
        flow.zero_grad(set_to_none=True)
        sum(t.sum() for t in HOSTS[host].sample(flow)).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())

    def test_samples_come_with_their_density(self, guest, host):
        flow = mixed_flow(guest, host)
        x, log_prob = HOSTS[host].sample(flow)
        torch.testing.assert_close(HOSTS[host].log_prob(flow, x), log_prob, **tolerance())

    def test_saving_and_copying(self, guest, host):
        flow, fresh, x, buffer = mixed_flow(guest, host), mixed_flow(guest, host), torch.randn(16, 2), io.BytesIO()
        wanted = HOSTS[host].log_prob(flow, x)
        fresh.load_state_dict(flow.state_dict())
        torch.save(flow, buffer)
        buffer.seek(0)
        for twin in (fresh, copy.deepcopy(flow), torch.load(buffer, weights_only=False)):
            assert torch.equal(HOSTS[host].log_prob(twin, x), wanted)

    def test_they_normalise(self, guest, host):
        flow, log_prob = mixed_flow(guest, host).double(), HOSTS[host].log_prob
        log_prob(flow, 0.1 * torch.randn(200, 2, dtype=torch.float64))
        flow.eval()
        assert abs(integral(lambda x: log_prob(flow, x), side=601, reach=4.0) - 1) < 1e-4


class TestZukosOwnChecks(ZukoChecks):
    """Of a flow of zuko's own transforms, the two other hosts', and flowplug's."""

    @pytest.fixture
    def flow(self):
        return zuko.flows.Flow(
            [
                *zuko_maf(3, 5).transforms,
                ZukoTransform(from_nflows(nt.CompositeTransform([rq_coupling(3, 5), nt.LULinear(3)]))),
                ZukoTransform(residual(context_features=5)),
                ZukoTransform(from_normflows([normflows_spline(3, 5), nf.flows.InvertibleAffine(3)])),
            ],
            zuko.flows.MAF(3).base,
        )


@pytest.mark.parametrize("guest", ["normflows", "zuko", "all"])
def test_nflows_own_check(guest):
    for core in guests(guest):
        check_forward_inverse(NflowsTransform(core), torch.randn(10, 2), **tolerance())


class TestNormflowsOwnChecks(FlowTest):
    def test_guests(self):
        for core in [*guests("nflows"), *guests("zuko")]:
            self.checkForwardInverse(NormflowsFlow(core), torch.randn(3, 2), **tolerance())


class TestOtherHosts:
    """Obstacle 1: nflows and normflows have the same methods, and opposite directions."""

    @pytest.mark.parametrize(
        ("bridge", "make", "message"),
        [
            (from_nflows, lambda: nf.flows.Permute(2), "Permute, which belongs to normflows: use flowplug_normflows"),
            (from_nflows, lambda: rotation(2), r"belongs to zuko: use flowplug_zuko\.from_zuko"),
            (from_normflows, lambda: nt.LULinear(2), r"LULinear, which belongs to nflows: use flowplug_nflows\.from"),
            (from_normflows, lambda: [rotation(2)], r"belongs to zuko: use flowplug_zuko\.from_zuko"),
            (from_normflows, lambda: [nt.LULinear(2)], r"belongs to nflows: use flowplug_nflows\.from_nflows"),
            (from_zuko, lambda: nt.LULinear(2), r"belongs to nflows: use flowplug_nflows\.from_nflows"),
            (from_zuko, lambda: nf.flows.Permute(2), r"belongs to normflows: use flowplug_normflows\.from_normflows"),
            (from_nflows, lambda: fp.ActNorm(2), "is a flowplug transform already"),
            (from_nflows, lambda: NflowsFlow(maf(2), StandardNormal([2])), "pass the transform it was made from"),
            (from_normflows, lambda: nf.NormalizingFlow(normflows_base(), []), "of a NormalizingFlow, pass its flows"),
            (from_zuko, lambda: zuko.flows.MAF(2), "of a Flow, pass its transform"),
            (from_zuko, lambda: rotation(2)(), r"an eager one as UnconditionalTransform\(RotationTransform, A\)"),
            (from_nflows, lambda: nn.Linear(2, 2), "from_nflows takes a nflows.transforms.base.Transform; got Linear"),
        ],
    )
    def test_are_refused_and_their_function_is_named(self, bridge, make, message):
        with pytest.raises(TypeError, match=message):
            bridge(make())


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


@pytest.mark.parametrize("form", ["int", "scalar", "view", "float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_dets_of_any_form_are_one_entry_for_each_sample(form, dtype):
    """Obstacle 2."""
    transform, x = from_nflows(Scale(form)), torch.randn(2, 3, 1, dtype=dtype)
    ladj = transform(x)[1]
    assert (ladj.shape, ladj.dtype, ladj.device) == ((2, 3), dtype, x.device)
    wanted = ladj.clone()
    ladj[0, 0] += 1
    wanted[0, 0] += 1
    assert torch.equal(ladj, wanted)
    assert abs(float(ladj[1, 2]) - (0 if form == "int" else 0.6931471805599453)) < 1e-6


class TestContext:
    """Obstacle 3."""

    def test_unconditional_transforms_ignore_it(self):
        x, context = torch.randn(4, 3), torch.randn(4, 2)
        zukos = from_zuko(zuko_maf())
        for transform in (
            from_nflows(maf()),
            from_normflows(masked_affine()),
            from_normflows(nf.flows.Permute(3)),
            zukos,
        ):
            assert torch.equal(transform(x, context)[0], transform(x)[0])

    def test_its_width_is_read_off_the_networks(self):
        assert from_nflows(rq_coupling(context=5)).context_features == 5
        assert from_nflows(nt.CompositeTransform([maf(), maf(context=4)])).context_features == 4
        assert from_normflows([masked_affine(), normflows_spline(context=3)]).context_features == 3
        assert from_normflows(reversed_composite()).context_features == 2
        assert from_nflows(NflowsTransform(residual(context_features=6))).context_features == 6

    def test_it_must_not_be_forgotten(self):
        for transform in (from_nflows(maf(context=2)), from_normflows(normflows_spline(context=2))):
            with pytest.raises(fp.ContextError, match=r"pass a context of shape \(\*batch, 2\)"):
                transform(torch.randn(4, 3))

    def test_it_can_be_kept_from_a_transform_that_cannot_use_it(self):
        made, x, context = maf(context=2), torch.randn(4, 3), torch.randn(4, 2)
        assert torch.equal(from_nflows(made, context_features=0)(x, context)[0], made(x)[0])
        net = nf.flows.MaskedAffineAutoregressive(3, 8, context_features=2)
        assert torch.equal(from_normflows(net, context_features=0)(x, context)[0], net.inverse(x)[0])

    def test_its_width_can_be_given_for_other_networks(self):
        class Shift(nt.Transform):
            def forward(self, inputs, context=None):
                return inputs + context.sum(-1, keepdim=True), 0

        x, context = torch.randn(5, 4, 3), torch.randn(4, 2)
        transform = from_nflows(Shift(), context_features=2)
        torch.testing.assert_close(transform(x, context)[0], x + context.sum(-1, keepdim=True))

    def test_wrong_widths_are_refused(self):
        with pytest.raises(fp.ContextError, match=r"contexts of widths \[2, 3\]: pass context_features"):
            from_nflows(nt.CompositeTransform([maf(context=2), maf(context=3)]))
        with pytest.raises(
            fp.ContextError, match="none of these flows takes a context: pass context_features=0, not 2"
        ):
            from_normflows([masked_affine()], context_features=2)
        with pytest.raises(fp.ContextError, match="must not be negative; got -1"):
            from_zuko(zuko_maf(), context_features=-1)

        class Plain(nt.Transform):
            def forward(self, inputs):
                return inputs, 0

        with pytest.raises(fp.ContextError, match=r"Plain\.forward has no argument context"):
            from_nflows(Plain(), context_features=2)
        assert from_nflows(Plain())(torch.randn(4, 3), torch.randn(4, 2))[0].shape == (4, 3)


class TestShapes:
    """Obstacle 4."""

    def test_element_wise_log_dets_are_summed(self):
        lazy, x = affine(), torch.randn(5, 4, 3)
        assert torch.allclose(from_zuko(lazy)(x)[1], lazy().log_abs_det_jacobian(x, x).sum(-1))

    def test_element_wise_log_dets_may_be_the_same_for_all_samples(self):
        class Doubling(torch.distributions.AffineTransform):
            def log_abs_det_jacobian(self, x, y):
                return torch.tensor([0.0, 1.0, 2.0])

        lazy, x = UnconditionalTransform(Doubling, 0.0, 2.0), torch.randn(3, 3)
        assert from_zuko(lazy)(x)[1].tolist() == [3.0, 3.0, 3.0]

    def test_element_wise_log_dets_of_images(self):
        lazy = UnconditionalTransform(zuko.transforms.MonotonicAffineTransform, torch.zeros(()), torch.ones(2, 2, 2))
        x = torch.randn(5, 2, 2, 2)
        ladj = from_zuko(lazy, event_dim=3)(x)[1]
        assert torch.allclose(ladj, lazy().log_abs_det_jacobian(x, x).sum((1, 2, 3)))

    @pytest.mark.parametrize(
        "make",
        [
            lambda: from_nflows(nt.ActNorm(2), event_dim=3),
            lambda: from_normflows(nf.flows.GlowBlock(2, 8), event_dim=3),
        ],
    )
    def test_hosts_see_one_batch_dimension(self, make):
        transform, x = make(), torch.randn(3, 4, 2, 2, 2)
        y, ladj = transform(x)
        rows, row_ladj = transform(x.flatten(0, 1))
        assert torch.equal(y.flatten(0, 1), rows)
        assert torch.equal(ladj.flatten(), row_ladj)
        assert transform(x[0, 0])[1].shape == ()

    def test_more_event_dims_than_stated_are_refused(self):
        lazy = UnconditionalTransform(zuko.transforms.IdentityTransform)
        with pytest.raises(fp.ShapeError, match="event_dim of at least 1; got 0"):
            from_zuko(lazy, event_dim=0)
        image = UnconditionalTransform(zuko.transforms.DependentTransform, lazy(), 3)
        with pytest.raises(fp.ShapeError, match="maps events of 3 dimensions: pass event_dim=3"):
            from_zuko(image)(torch.randn(4, 2, 2, 2))

    def test_transforms_that_change_the_shape_are_refused(self):
        for transform in (nt.SqueezeTransform(), nt.MultiscaleCompositeTransform(1)):
            with pytest.raises(fp.ShapeError, match=f"{type(transform).__name__} changes the shape of events"):
                from_nflows(transform, event_dim=3)
        inside = from_nflows(nt.CompositeTransform([nt.SqueezeTransform()]), event_dim=3)
        with pytest.raises(fp.ShapeError, match=r"events of shape \(2, 4, 4\) to \(8, 2, 2\)"):
            inside(torch.randn(5, 2, 4, 4))
        with pytest.raises(fp.ShapeError, match=r"events of shape \(8, 2, 2\) to \(2, 4, 4\)"):
            inside.inverse(torch.randn(5, 8, 2, 2))
        reshape = UnconditionalTransform(zuko.transforms.ReshapeTransform, (2, 2, 2), (8,))
        with pytest.raises(fp.ShapeError, match=r"events of shape \(2, 2, 2\) to \(8,\)"):
            from_zuko(reshape, event_dim=3)(torch.randn(5, 2, 2, 2))

    def test_a_composite_that_restores_the_shape_is_taken_as_a_whole(self):
        squeeze = nt.SqueezeTransform()
        parts = [squeeze, nt.OneByOneConvolution(4), nt.InverseTransform(squeeze)]
        transform, x = from_nflows(nt.CompositeTransform(parts), event_dim=3), torch.randn(3, 1, 4, 4)
        y, ladj = transform(x)
        torch.testing.assert_close(transform.inverse(y)[0], x)
        assert ladj.shape == (3,)


class TestNoBijections:
    """Obstacle 5."""

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (nf.flows.Split, "Split of normflows works on lists of tensors: pass the block"),
            (nf.flows.Merge, "Merge of normflows works on lists"),
            (lambda: nf.flows.AffineCoupling(nn.Linear(1, 2)), "AffineCoupling of normflows works on lists"),
            (lambda: nf.flows.MetropolisHastings(None, None, 1), "MetropolisHastings of normflows draws at random"),
            (lambda: nf.flows.HamiltonianMonteCarlo(None, 1, torch.zeros(2), torch.zeros(2)), "draws at random"),
            (nf.flows.Squeeze, "Squeeze of normflows changes the shape"),
            (nf.flows.BatchNorm, r"BatchNorm of normflows .* use flowplug\.ActNorm"),
            (lambda: nf.flows.CCAffineConst(2, 3), "CCAffineConst of normflows takes class labels"),
            (lambda: nf.flows.Residual(nf.nets.LipschitzMLP([2, 4, 2])), r"use flowplug_normflows\.Residual\(flow"),
            (lambda: nf.flows.Composite([nf.flows.Reverse(nf.flows.Split())]), "Split of normflows works on lists"),
        ],
    )
    def test_of_normflows(self, make, message):
        with pytest.raises(TypeError, match=message):
            from_normflows(make())

    def test_flows_of_one_direction(self):
        for flow in (nf.flows.Radial((2,)), nf.flows.Planar((2,))):
            transform, x = from_normflows(flow), torch.randn(4, 2)
            with pytest.raises(
                fp.InverseNotAvailable, match="maps latent to data only: This flow has no algebraic inv"
            ):
                transform(x)
            assert torch.equal(transform.inverse(x)[0], flow(x)[0])
            assert torch.equal(fp.InverseTransform(transform)(x)[1], flow(x)[1])

    def test_batch_norm_of_nflows_in_train_mode(self):
        transform, x = from_nflows(nt.CompositeTransform([nt.BatchNorm(2)])), torch.randn(16, 2)
        for _ in range(10):
            transform(x)
        with pytest.raises(
            fp.InverseNotAvailable, match=r"in train mode: .* call eval\(\) first, or use flowplug.ActNor"
        ):
            transform.inverse(x)
        transform.eval()
        torch.testing.assert_close(transform.inverse(transform(x)[0])[0], x)

    def test_transforms_without_log_det(self):
        softmax = UnconditionalTransform(torch.distributions.SoftmaxTransform)
        with pytest.raises(fp.InverseNotAvailable, match="SoftmaxTransform is no bijection"):
            from_zuko(softmax)(torch.randn(4, 2))

    def test_a_missing_inverse_of_nflows_is_nflows_own_error_again_in_nflows(self):
        with pytest.raises(nt.InverseNotAvailable):
            NflowsTransform(from_nflows(Scale("scalar"))).inverse(torch.randn(4, 2))

    def test_the_hosts_domain_error_passes(self):
        with pytest.raises(nt.InputOutsideDomain):
            from_nflows(nt.Sigmoid()).inverse(2 * torch.ones(4, 2))


class TestMutation:
    """Obstacle 6: what hosts write on."""

    def test_an_in_place_shift_leaves_the_input_alone(self):
        x = torch.randn(4, 2, requires_grad=True)
        before = x.detach().clone()
        for direction in (from_normflows(nf.transforms.Shift()), from_normflows(nf.transforms.Shift()).inverse):
            direction(x)[0].sum().backward()
            assert torch.equal(x, before)

    def test_actnorm_waits_for_train_mode(self):
        x, transform = 3 + 2 * torch.randn(64, 2), from_normflows(nf.flows.ActNorm((2,)))
        transform.eval()
        before = {name: value.clone() for name, value in transform.state_dict().items()}
        assert torch.equal(transform(x)[0], x)
        assert torch.equal(transform.inverse(x)[0], x)
        assert all(torch.equal(value, before[name]) for name, value in transform.state_dict().items())
        y = transform.train()(x)[0]
        assert float(y.detach().mean().abs()) < 1e-4
        assert torch.equal(transform.eval()(x)[0], y)

    def test_actnorm_takes_the_first_direction_in_train_mode(self):
        z = 3 + 2 * torch.randn(64, 2)
        transform = from_normflows(nf.flows.ActNorm((2,)))
        x = transform.inverse(z)[0]
        assert float(x.detach().mean().abs()) < 1e-4
        torch.testing.assert_close(transform(x)[0], z)

    def test_actnorm_waits_inside_a_block_whatever_happens(self):
        transform = from_normflows(nf.flows.GlowBlock(2, 8), event_dim=3).eval()
        with pytest.raises(RuntimeError):
            transform(torch.randn(4, 7, 2, 2))
        (norm,) = [module for module in transform.modules() if isinstance(module, nf.flows.ActNorm)]
        assert not norm.data_dep_init_done


def test_parameters_are_shared_and_move_with_the_bridge():
    """Obstacle 7: the laws on saving and copying hold besides."""
    host = nt.LULinear(2)
    transform = from_nflows(host)
    assert set(map(id, transform.parameters())) == set(map(id, host.parameters()))
    assert transform.state_dict().keys() == {f"host.{name}" for name in host.state_dict()}
    transform.eval().to(torch.float32)
    assert not host.training
    assert next(host.parameters()).dtype == torch.float32


def test_empty_batches_never_reach_the_host():
    y, ladj = from_nflows(Scale(form="none that it knows"))(torch.randn(0, 4, 1))
    assert (y.shape, ladj.shape) == ((0, 4, 1), (0, 4))
