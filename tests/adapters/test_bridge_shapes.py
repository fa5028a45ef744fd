"""Shapes of events, batches and log-dets across a bridge."""

import normflows as nf
import pytest
import torch
import zuko
from nflows import transforms as nt
from zuko.lazy import LazyComposedTransform, UnconditionalTransform

import flowplug as fp
from bridge_cases import Scale, affine
from flowplug.testing import check_transform
from flowplug_nflows import NflowsTransform, from_nflows
from flowplug_normflows import NormflowsFlow, from_normflows
from flowplug_zuko import ZukoTransform, from_zuko


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
            from_zuko(image, event_dim=1)(torch.randn(4, 2, 2, 2))
        assert from_zuko(image)(torch.randn(4, 2, 2, 2))[1].shape == (4,)

    def test_a_users_own_transform_must_not_change_the_shape(self):
        class Flatten(nt.Transform):
            def forward(self, inputs, context=None):
                return inputs.flatten(1), inputs.new_zeros(len(inputs))

        with pytest.raises(
            fp.ShapeError, match=r"Flatten maps events of shape \(2, 4, 4\) to \(32,\), where \(2, 4, 4\)"
        ):
            from_nflows(Flatten(), event_dim=3)(torch.randn(5, 2, 4, 4))

    def test_a_composite_that_restores_the_shape_is_taken_as_a_whole(self):
        squeeze = nt.SqueezeTransform()
        parts = [squeeze, nt.OneByOneConvolution(4), nt.InverseTransform(squeeze)]
        transform, x = from_nflows(nt.CompositeTransform(parts), event_dim=3), torch.randn(3, 1, 4, 4)
        y, ladj = transform(x)
        torch.testing.assert_close(transform.inverse(y)[0], x)
        assert ladj.shape == (3,)


def squeezed_maf():
    return nt.CompositeTransform([nt.SqueezeTransform(), nt.ActNorm(4)])


def multiscale():
    scales = nt.MultiscaleCompositeTransform(2)
    hidden = scales.add_transform(squeezed_maf(), (4, 2, 4))
    scales.add_transform(nt.CompositeTransform([nt.SqueezeTransform(), nt.ActNorm(8)]), (8, 1, 2))
    assert hidden == (2, 2, 4)
    return scales


def reshaping_zuko():
    reshape = UnconditionalTransform(zuko.transforms.ReshapeTransform, (1, 4, 8), (32,))
    return LazyComposedTransform(ZukoTransform(fp.ActNorm(1, event_dim=3)), reshape, affine_of(32))


def affine_of(features):
    return UnconditionalTransform(
        zuko.transforms.MonotonicAffineTransform, torch.randn(features), torch.randn(features)
    )


CHANGES = {
    "nflows squeeze": (lambda: from_nflows(nt.SqueezeTransform()), (4, 2, 4)),
    "nflows composite": (lambda: from_nflows(squeezed_maf()), (4, 2, 4)),
    "nflows multiscale": (lambda: from_nflows(multiscale()), (32,)),
    "nflows inverse": (
        lambda: fp.InverseTransform(from_nflows(nt.InverseTransform(multiscale()), event_dim=1)),
        (32,),
    ),
    "nflows wrapper": (lambda: from_nflows(NflowsTransform(fp.Reshape((1, 4, 8), 32))), (32,)),
    "normflows squeeze": (lambda: from_normflows(nf.flows.Squeeze()), (4, 2, 4)),
    "normflows list": (
        lambda: from_normflows([nf.flows.ActNorm((4, 1, 1)), nf.flows.Squeeze(), nf.flows.ActNorm((1, 1, 1))]),
        (4, 2, 4),
    ),
    "normflows reverse": (lambda: fp.InverseTransform(from_normflows(nf.flows.Reverse(nf.flows.Squeeze()))), (4, 2, 4)),
    "normflows wrapper": (lambda: from_normflows([NormflowsFlow(fp.Reshape((1, 4, 8), 32))], event_dim=3), (32,)),
    "zuko reshape": (
        lambda: from_zuko(UnconditionalTransform(zuko.transforms.ReshapeTransform, (1, 4, 8), (2, 16))),
        (2, 16),
    ),
    "zuko rows": (
        lambda: from_zuko(UnconditionalTransform(zuko.transforms.ReshapeTransform, (8,), (2, 4)), event_dim=3),
        (1, 4, 2, 4),
    ),
    "zuko composed": (lambda: from_zuko(reshaping_zuko()), (32,)),
    "zuko inverse": (lambda: fp.InverseTransform(from_zuko(reshaping_zuko().inv, event_dim=1)), (32,)),
}


@pytest.mark.parametrize("name", CHANGES)
class TestChangesOfShape:
    def test_obeys_the_laws(self, name):
        laws = ["shape and dtype", "layouts", "round trip", "ladj of the inverse", "value of the ladj"]
        check_transform(lambda: CHANGES[name][0]().eval(), torch.randn(4, 1, 4, 8), laws=laws, ways=["eager"])

    def test_says_its_shapes(self, name):
        make, latent = CHANGES[name]
        transform = make()
        assert (transform.event_dim, transform.latent_dim) == (3, len(latent))
        assert transform.forward_shape((1, 4, 8)) == transform(torch.randn(2, 3, 1, 4, 8))[0].shape[2:] == latent
        assert (
            transform.inverse_shape(latent) == transform.inverse(torch.randn(2, 3, *latent))[0].shape[2:] == (1, 4, 8)
        )

    def test_is_a_part_like_any_other(self, name):
        make, latent = CHANGES[name]
        flow = fp.ComposedTransform(fp.ActNorm(1, event_dim=3), make(), fp.Reshape(latent, 32), fp.ActNorm(32))
        x = torch.randn(70, 1, 4, 8)
        torch.testing.assert_close(flow.inverse(flow(x)[0])[0], x)


@pytest.mark.parametrize("name", ["nflows squeeze", "normflows squeeze"])
def test_images_that_cannot_be_squeezed(name):
    with pytest.raises(fp.ShapeError, match=r"Squeeze needs images \(C, H, W\) whose sides 2 divides; got \(1, 3, 4\)"):
        CHANGES[name][0]()(torch.randn(5, 1, 3, 4))


def test_empty_batches_never_reach_the_host():
    y, ladj = from_nflows(Scale(form="none that it knows"))(torch.randn(0, 4, 1))
    assert (y.shape, ladj.shape) == ((0, 4, 1), (0, 4))


def test_a_multiscale_composite_takes_events_of_its_own_sizes_only():
    transform = nt.MultiscaleCompositeTransform(2)
    shape = transform.add_transform(nt.SqueezeTransform(), (8, 2, 2))
    transform.add_transform(nt.ActNorm(shape[0]), shape)
    bridged = from_nflows(transform)
    assert (bridged.event_shape, bridged.latent_shape) == ((2, 4, 4), (32,))
    with pytest.raises(fp.ShapeError):
        bridged.inverse(torch.rand(64, 33))
    with pytest.raises(fp.ShapeError):
        bridged(torch.rand(64, 2, 8, 8))
    with pytest.raises(fp.ShapeError):
        bridged.forward_shape((5, 3, 3))
