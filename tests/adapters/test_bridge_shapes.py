"""Shapes of events, batches and log-dets across a bridge."""

import normflows as nf
import pytest
import torch
import zuko
from nflows import transforms as nt
from zuko.lazy import UnconditionalTransform

import flowplug as fp
from bridge_cases import Scale, affine
from flowplug_nflows import from_nflows
from flowplug_normflows import from_normflows
from flowplug_zuko import from_zuko


@pytest.mark.parametrize("form", ["int", "scalar", "view", "float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_dets_of_any_form_are_one_entry_for_each_sample(form, dtype):
    transform, x = from_nflows(Scale(form)), torch.randn(2, 3, 1, dtype=dtype)
    ladj = transform(x)[1]
    assert (ladj.shape, ladj.dtype, ladj.device) == ((2, 3), dtype, x.device)
    wanted = ladj.clone()
    ladj[0, 0] += 1
    wanted[0, 0] += 1
    assert torch.equal(ladj, wanted)
    assert abs(float(ladj[1, 2]) - (0 if form == "int" else 0.6931471805599453)) < 1e-6


class TestShapes:
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


def test_empty_batches_never_reach_the_host():
    y, ladj = from_nflows(Scale(form="none that it knows"))(torch.randn(0, 4, 1))
    assert (y.shape, ladj.shape) == ((0, 4, 1), (0, 4))
