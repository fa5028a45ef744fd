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
from bridge_cases import Scale, maf, normflows_base, rotation
from flowplug_nflows import NflowsTransform, from_nflows
from flowplug_normflows import from_normflows
from flowplug_zuko import from_zuko


class TestOtherHosts:
    """nflows and normflows have the same methods, and opposite directions."""

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
