"""The context of bridged transforms: ignored, read off the networks, or given."""

import normflows as nf
import pytest
import torch
from nflows import transforms as nt

import flowplug as fp
from bridge_cases import maf, masked_affine, normflows_spline, reversed_composite, rq_coupling, zuko_maf
from cases import residual
from flowplug_nflows import NflowsTransform, from_nflows
from flowplug_normflows import from_normflows
from flowplug_zuko import from_zuko


class TestContext:
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
