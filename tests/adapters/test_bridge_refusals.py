"""What the bridges refuse, and what they name in its place."""

import normflows as nf
import pytest
import torch
import zuko
from nflows import transforms as nt
from nflows.distributions import StandardNormal
from nflows.flows import Flow as NflowsFlow
from torch import nn
from zuko.lazy import UnconditionalTransform

import flowplug as fp
import flowplug_nflows
import flowplug_normflows
import flowplug_zuko
from bridge_cases import Scale, maf, normflows_base, rotation
from flowplug_nflows import NflowsTransform, from_nflows
from flowplug_normflows import from_normflows
from flowplug_zuko import from_zuko

NFLOWS, NORMFLOWS, ZUKO = (
    f"{function} takes a {base}; got "
    for function, base in (
        ("from_nflows", "nflows.transforms.base.Transform"),
        ("from_normflows", "normflows.flows.base.Flow"),
        ("from_zuko", "zuko.lazy.LazyTransform"),
    )
)
EAGER = (
    "a transform that is not lazy: pass UnconditionalTransform(RotationTransform, A) for RotationTransform(A), or "
    "flow.transform of the flow that returned it"
)
OF_FLOW = "a flow: pass the transform it was made from, flow._transform"
CALL = "itself: call it, and pass what it returns"
FLOWS = "a flow: pass flow.flows"
ALREADY = "a flowplug transform already: use it as it is"
CORE = "which wraps a flowplug transform: use that, its core"
NETWORK = "a module that is no transform: a network goes into flowplug.ResidualTransform(g)"
OF_NFLOWS = "which belongs to nflows: use flowplug_nflows.from_nflows"
OF_NORMFLOWS = "which belongs to normflows: use flowplug_normflows.from_normflows"
OF_ZUKO = "which belongs to zuko: use flowplug_zuko.from_zuko"
SCALES = "a flow of several scales: pass the flows of one of them, flow.flows[i]"
OBJECT = "a distribution: pass flow.transform of the flow that returned it"
LIST = "a list: pass zuko.lazy.LazyComposedTransform(*list)"
BASE = "a distribution: pass the transform in front of it"
REFUSED = [
    # What is of the host, but no transform.
    (from_nflows, lambda: NflowsFlow(maf(2), StandardNormal([2])), f"nflows.flows.base.Flow, {OF_FLOW}"),
    (from_nflows, lambda: flowplug_nflows.ResidualFlow(2, 4, 1, 1), f"flowplug_nflows.ResidualFlow, {OF_FLOW}"),
    (from_nflows, lambda: [maf(2)], "list, a list: pass nflows.transforms.CompositeTransform(list)"),
    (from_nflows, lambda: nt.LULinear, f"nflows.transforms.lu.LULinear {CALL}"),
    (from_normflows, lambda: nf.NormalizingFlow(normflows_base(), []), f"normflows.core.NormalizingFlow, {FLOWS}"),
    (
        from_normflows,
        lambda: nf.ConditionalNormalizingFlow(normflows_base(), []),
        f"normflows.core.ConditionalNormalizingFlow, {FLOWS}",
    ),
    (from_normflows, lambda: nf.ClassCondFlow(normflows_base(), []), f"normflows.core.ClassCondFlow, {FLOWS}"),
    (
        from_normflows,
        lambda: nf.MultiscaleFlow([normflows_base()], [[]], []),
        f"normflows.core.MultiscaleFlow, {SCALES}",
    ),
    (
        from_normflows,
        normflows_base,
        "normflows.distributions.base.DiagGaussian, a distribution: pass the flows in front of it",
    ),
    (from_normflows, lambda: nf.flows.Permute, f"normflows.flows.mixing.Permute {CALL}"),
    (from_normflows, lambda: flowplug_normflows.ResidualFlow, f"flowplug_normflows.ResidualFlow {CALL}"),
    (from_zuko, lambda: zuko.flows.NSF(2), "zuko.flows.spline.NSF, a flow: pass flow.transform"),
    (from_zuko, lambda: zuko.flows.NSF(2).base, f"zuko.lazy.UnconditionalDistribution, {BASE}"),
    (from_zuko, lambda: zuko.flows.NSF(2)(), f"zuko.distributions.NormalizingFlow, {OBJECT}"),
    (from_zuko, lambda: rotation(2)(), f"zuko.transforms.RotationTransform, {EAGER}"),
    (from_zuko, lambda: zuko.flows.MAF(2).transform.transforms, f"torch.nn.modules.container.ModuleList, {LIST}"),
    (from_zuko, lambda: zuko.flows.NSF, f"zuko.flows.spline.NSF {CALL}"),
    # What is of another host: it may have the same methods, and opposite directions.
    (from_nflows, lambda: nf.flows.Permute(2), f"normflows.flows.mixing.Permute, {OF_NORMFLOWS}"),
    (from_nflows, lambda: rotation(2), f"zuko.lazy.UnconditionalTransform, {OF_ZUKO}"),
    (from_normflows, lambda: nt.LULinear(2), f"nflows.transforms.lu.LULinear, {OF_NFLOWS}"),
    (from_normflows, lambda: [nt.LULinear(2)], f"nflows.transforms.lu.LULinear, {OF_NFLOWS}"),
    (from_normflows, lambda: [rotation(2)], f"zuko.lazy.UnconditionalTransform, {OF_ZUKO}"),
    (from_normflows, lambda: zuko.flows.NSF(2)(), f"zuko.distributions.NormalizingFlow, {OF_ZUKO}"),
    (from_zuko, lambda: nt.LULinear(2), f"nflows.transforms.lu.LULinear, {OF_NFLOWS}"),
    (from_zuko, lambda: nf.flows.Permute(2), f"normflows.flows.mixing.Permute, {OF_NORMFLOWS}"),
    (from_zuko, lambda: nf.NormalizingFlow(normflows_base(), []), f"normflows.core.NormalizingFlow, {OF_NORMFLOWS}"),
    # What is of flowplug.
    (from_nflows, lambda: fp.ActNorm(2), f"flowplug.ActNorm, {ALREADY}"),
    (from_normflows, lambda: [fp.Squeeze()], f"flowplug.images.Squeeze, {ALREADY}"),
    (from_zuko, lambda: from_nflows(maf(2)), f"flowplug_nflows.NflowsBridge, {ALREADY}"),
    (from_nflows, lambda: flowplug_zuko.ResidualTransform(2), f"flowplug_zuko.ResidualTransform, {CORE}"),
    (from_zuko, lambda: flowplug_normflows.Residual(2), f"flowplug_normflows.Residual, {CORE}"),
    (from_zuko, lambda: flowplug_zuko.ResidualTransform(2)(), f"flowplug_zuko.BoundTransform, {CORE}"),
    # What is neither.
    *(
        (bridge, lambda: nn.Linear(2, 2), f"torch.nn.modules.linear.Linear, {NETWORK}")
        for bridge in (from_nflows, from_normflows, from_zuko)
    ),
    (from_nflows, lambda: None, "None"),
    (from_normflows, lambda: 3, "3"),
    (from_zuko, lambda: torch.zeros(2), "a tensor of shape (2,)"),
]


@pytest.mark.parametrize(("bridge", "make", "message"), REFUSED)
def test_what_is_given_is_named_and_what_to_pass_instead(bridge, make, message):
    start = {from_nflows: NFLOWS, from_normflows: NORMFLOWS, from_zuko: ZUKO}[bridge]
    with pytest.raises(TypeError) as caught:
        bridge(make())
    assert str(caught.value) == start + message


class TestNoBijections:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (nf.flows.Split, "Split of normflows works on lists of tensors: pass the block"),
            (nf.flows.Merge, "Merge of normflows works on lists"),
            (lambda: nf.flows.AffineCoupling(nn.Linear(1, 2)), "AffineCoupling of normflows works on lists"),
            (lambda: nf.flows.MetropolisHastings(None, None, 1), "MetropolisHastings of normflows draws at random"),
            (lambda: nf.flows.HamiltonianMonteCarlo(None, 1, torch.zeros(2), torch.zeros(2)), "draws at random"),
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
