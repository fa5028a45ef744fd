"""The protocol: bad input is refused by name, combinations compose, and inputs of every batch shape work."""

import math

import pytest
import torch
from torch import nn

import flowplug as fp
from cases import ADAPTERS, CORE, residual, small_mlp


@pytest.fixture
def transform():
    return residual(context_features=2)


def inputs():
    return torch.randn(4, 3), torch.randn(4, 2)


class TestBadInput:
    def test_wrong_feature_count(self, transform):
        with pytest.raises(fp.ShapeError, match=r"event \(3,\); got shape \(4, 5\)"):
            transform(torch.randn(4, 5), torch.randn(4, 2))

    def test_too_few_dimensions(self):
        with pytest.raises(fp.ShapeError, match=r"got shape \(3,\)"):
            residual(event=(1, 1, 3))(torch.randn(3))

    @pytest.mark.parametrize("make", [lambda: fp.LipschitzCNN(2), lambda: nn.Sequential(fp.LipschitzConv2d(2, 2, 3))])
    def test_an_event_without_entries(self, make):
        transform = fp.ResidualTransform(make(), event_dim=3)
        with pytest.raises(fp.ShapeError, match=r"needs events with entries.*; got \(4, 2, 0, 3\)"):
            transform(torch.zeros(4, 2, 0, 3))
        with pytest.raises(fp.ShapeError, match=r"got \(4, 2, 0, 3\)"):
            fp.LipschitzCNN(2)(torch.zeros(4, 2, 0, 3))

    def test_numbers_for_storage(self):
        with pytest.raises(fp.DtypeError, match=r"floating-point input; got torch.float8_e5m2: convert it"):
            fp.TanhLinear()(torch.zeros(4, 3).to(torch.float8_e5m2))

    def test_wrong_width_in_a_users_network(self):
        layer = fp.LipschitzLinear(3, 3)
        with pytest.raises(fp.ShapeError, match=r"\(\*batch, 3\); got \(4, 5\)"):
            fp.ResidualTransform(nn.Sequential(layer))(torch.randn(4, 5))

    def test_network_that_changes_the_shape(self):
        with pytest.raises(fp.ShapeError, match="must keep the shape"):
            fp.ResidualTransform(nn.Sequential(fp.LipschitzLinear(3, 2)))(torch.randn(4, 3))

    def test_event_dim_that_contradicts_the_network(self):
        with pytest.raises(fp.ShapeError, match="event_dim=3 contradicts"):
            fp.ResidualTransform(small_mlp(), event_dim=3)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("direction", ["forward", "inverse"])
    def test_one_row_that_is_not_finite(self, transform, value, direction):
        x, context = inputs()
        x[2, 1] = value
        with pytest.raises(fp.NonFiniteError, match=r"1 NaN or infinite value\(s\), the first at index \(2, 1\)"):
            getattr(transform.eval(), direction)(x, context)

    def test_context_that_is_not_finite(self, transform):
        x, context = inputs()
        context[1, 0] = math.nan
        with pytest.raises(fp.NonFiniteError, match=r"the context holds 1 NaN.*\(1, 0\)"):
            transform.eval()(x, context)

    def test_integer_input(self, transform):
        with pytest.raises(fp.DtypeError, match=r"floating-point input; got torch.int64"):
            transform(torch.ones(4, 3, dtype=torch.int64), torch.randn(4, 2))

    def test_input_that_is_no_tensor(self, transform):
        with pytest.raises(fp.DtypeError, match=r"torch.Tensor; got list"):
            transform([1.0, 2.0, 3.0])

    def test_dtype_of_the_parameters(self, transform):
        x, context = inputs()
        with pytest.raises(fp.DtypeError, match=r"the input is torch.bfloat16, expected"):
            transform(x.bfloat16(), context)

    def test_device_of_the_parameters(self, transform):
        x, context = inputs()
        with pytest.raises(fp.DeviceError, match="the input is on meta, expected"):
            transform(x.to("meta"), context)

    def test_missing_context(self, transform):
        with pytest.raises(fp.ContextError, match=r"pass a context of shape \(\*batch, 2\)"):
            transform(inputs()[0])

    def test_context_of_the_wrong_width(self, transform):
        with pytest.raises(fp.ContextError, match=r"width 2; got shape \(4, 3\)"):
            transform(inputs()[0], torch.randn(4, 3))

    def test_context_of_the_wrong_dtype(self, transform):
        x, context = inputs()
        with pytest.raises(fp.ContextError, match=r"the context is torch\.bfloat16"):
            transform(x, context.bfloat16())

    def test_batches_that_do_not_broadcast(self, transform):
        with pytest.raises(fp.ShapeError, match=r"\(4,\) of the input does not broadcast against \(3,\)"):
            transform(inputs()[0], torch.randn(3, 2))

    def test_every_error_is_a_flowplug_error_and_a_builtin_one(self):
        pairs = {
            fp.ShapeError: ValueError,
            fp.DtypeError: TypeError,
            fp.DeviceError: ValueError,
            fp.NonFiniteError: ValueError,
            fp.ContextError: ValueError,
            fp.LipschitzError: ValueError,
            fp.NotConverged: RuntimeError,
            fp.InverseNotAvailable: NotImplementedError,
            fp.SecondDerivativeError: RuntimeError,
        }
        for error, builtin in pairs.items():
            assert issubclass(error, fp.FlowplugError)
            assert issubclass(error, builtin)


class TestContext:
    def test_unconditional_transforms_drop_it_unread(self):
        transform, (x, _) = residual(), inputs()
        strange = torch.full((7, 5, 6), math.nan)
        assert torch.equal(transform(x, strange)[0], transform(x)[0])

    @pytest.mark.parametrize(
        ("batch", "context", "wanted"),
        [((), (5,), (5,)), ((5,), (), (5,)), ((6, 5), (5,), (6, 5)), ((6, 1), (5,), (6, 5)), ((0,), (1,), (0,))],
    )
    def test_broadcasts_both_ways(self, transform, batch, context, wanted, eps):
        x, c = torch.randn(*batch, 3), torch.randn(*context, 2)
        y, ladj = transform(x, c)
        assert y.shape == (*wanted, 3)
        assert ladj.shape == wanted
        back, inverse_ladj = transform.inverse(y, c)
        torch.testing.assert_close(back, x.expand(back.shape), atol=100 * eps, rtol=0)
        torch.testing.assert_close(inverse_ladj, -ladj, atol=100 * eps, rtol=0)
        rows = transform(x.expand(*wanted, 3).reshape(-1, 3), c.expand(*wanted, 2).reshape(-1, 2))[0]
        torch.testing.assert_close(y.reshape(-1, 3), rows, atol=10 * eps, rtol=0)


class TestComposition:
    def test_ladjs_add_up_and_order_is_data_to_latent(self, eps):
        first, second = residual(), residual()
        x, _ = inputs()
        middle, ladj_1 = first(x)
        y, ladj_2 = second(middle)
        composed = fp.ComposedTransform(first, second)
        torch.testing.assert_close(composed(x), (y, ladj_1 + ladj_2), atol=10 * eps, rtol=0)

    def test_nothing_to_compose(self):
        with pytest.raises(fp.ShapeError, match="one or more"):
            fp.ComposedTransform()

    def test_different_event_dims(self):
        message = r"part 1, ActNorm, returns events of 1 dimension\(s\), and part 2, ActNorm, takes events of 3"
        with pytest.raises(fp.ShapeError, match=message):
            fp.ComposedTransform(fp.ActNorm(2), fp.ActNorm(2, event_dim=3))

    def test_sizes_that_do_not_fit(self):
        parts = [fp.ActNorm(1, event_dim=3), fp.Squeeze(), fp.ActNorm(3, event_dim=3)]
        message = (
            r"part 3, ActNorm takes events \(3, None, None\); got \(4, None, None\), which part 2, Squeeze, returns"
        )
        with pytest.raises(fp.ShapeError, match=message):
            fp.ComposedTransform(*parts)
        with pytest.raises(
            fp.ShapeError, match=r"part 2, Squeeze needs images .* 2 divides; got \(1, 3, 2\), which part 1"
        ):
            fp.ComposedTransform(fp.Reshape(6, (1, 3, 2)), fp.Squeeze())
        with pytest.raises(fp.ShapeError, match=r"part 2, ActNorm takes events \(3,\); got \(2,\)"):
            fp.ComposedTransform(fp.ActNorm(2), fp.ActNorm(3))

    def test_shapes_are_known_as_far_as_any_part_knows_them(self):
        parts = [fp.TanhLinear(event_dim=3), fp.Squeeze(), fp.ActNorm(4, event_dim=3)]
        open_ended = fp.ComposedTransform(*parts)
        assert (open_ended.event_dim, open_ended.event_shape) == (3, (1, None, None))
        assert (open_ended.latent_dim, open_ended.latent_shape) == (3, (4, None, None))
        assert open_ended.forward_shape((None, 8, 6)) == (4, 4, 3)
        assert open_ended.inverse_shape((4, 4, 3)) == (1, 8, 6)
        flat = fp.ComposedTransform(open_ended, fp.Reshape((4, 1, 2), 8))
        assert (flat.event_shape, flat.latent_dim, flat.latent_shape) == ((1, 2, 4), 1, (8,))
        back = fp.InverseTransform(flat)
        assert (back.event_dim, back.event_shape, back.latent_dim, back.latent_shape) == (1, (8,), 3, (1, 2, 4))
        assert back.inverse_shape((1, 2, 4)) == (8,)
        assert fp.ComposedTransform(fp.TanhLinear()).event_shape is None

    @pytest.mark.parametrize("sizes", [(2,), (1, 3, 4), (1, 2, 4, 4)])
    def test_sizes_of_no_event(self, sizes):
        transform = fp.ComposedTransform(fp.ActNorm(1, event_dim=3), fp.Squeeze())
        with pytest.raises(fp.ShapeError, match=rf"got \({', '.join(map(str, sizes))}"):
            transform.forward_shape(sizes)
        with pytest.raises(fp.ShapeError, match=r"Transform.inverse takes events \(4, None, None\); got \(1, 2, 2\)"):
            transform.inverse_shape((1, 2, 2))

    def test_the_inverse_takes_latents(self):
        transform = fp.ComposedTransform(fp.ActNorm(1, event_dim=3), fp.Squeeze())
        assert transform.inverse(torch.randn(5, 4, 2, 3))[0].shape == (5, 1, 4, 6)
        message = r"ComposedTransform.inverse expects .* with event \(4, None, None\); got shape \(5, 1, 4, 6\)"
        with pytest.raises(fp.ShapeError, match=message):
            transform.inverse(torch.randn(5, 1, 4, 6))

    def test_different_context_widths(self):
        with pytest.raises(fp.ContextError, match=r"\[1, 2\]"):
            fp.ComposedTransform(residual(context_features=1), residual(context_features=2))

    def test_inverse_swaps_the_directions(self):
        transform, (x, context) = residual(context_features=2), inputs()
        swapped = fp.InverseTransform(transform)
        torch.testing.assert_close(swapped.inverse(x, context), transform(x, context))
        torch.testing.assert_close(swapped(x, context), transform.inverse(x, context))

    def test_a_transform_without_inverse_says_so(self):
        class OneWay(fp.Transform):
            event_dim = 1

            def _forward(self, x, context):
                return x, x.new_zeros(x.shape[:-1])

        with pytest.raises(fp.InverseNotAvailable, match="OneWay has no inverse"):
            OneWay().inverse(torch.randn(2, 3))


class TestModes:
    @pytest.mark.parametrize("name", [*CORE, *ADAPTERS])
    def test_two_of_a_kind_share_no_module(self, name):
        make = (CORE | ADAPTERS)[name].make
        one, other = make(), make()
        assert not set(one.modules()) & set(other.modules())

    def test_functional_call_uses_the_parameters_it_is_given(self):
        a, b, (x, context) = residual(context_features=2), residual(context_features=2), inputs()
        called = torch.func.functional_call(a, {**b.state_dict()}, (x, context))
        torch.testing.assert_close(called, b(x, context))

    def test_training_changes_nothing_but_noise(self):
        transform = residual(logdet=fp.ExactLogDet(), context_features=2)
        x, context = inputs()
        assert torch.equal(transform.train()(x, context)[1], transform.eval()(x, context)[1])

    @pytest.mark.parametrize("logdet", [fp.ExactLogDet(), fp.PowerSeries(fp.Truncated(20), fp.Rademacher(500))])
    def test_autocast_returns_single_precision(self, logdet):
        transform, x = residual(logdet=logdet).float(), torch.randn(4, 3, dtype=torch.float32, requires_grad=True)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            y, ladj = transform(x)
        assert y.dtype == ladj.dtype == torch.float32
        (y.sum() + ladj.sum()).backward()
        # bfloat16 has 8 bits, and 500 probes leave a tenth of the spread of one.
        torch.testing.assert_close(ladj, transform.eval()(x)[1], atol=0.1, rtol=0)
