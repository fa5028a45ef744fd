"""Lipschitz bounds: true, kept at every forward, refused when unknown or too large."""

import math

import pytest
import torch
from torch import nn

import flowplug as fp
from cases import small_mlp
from flowplug import Branch
from flowplug.branch import SWISH_SLOPE

NORMS = [fp.InfNorm(), fp.Gram()]


def true_norm(weight, norm):
    return torch.linalg.matrix_norm(weight, norm.orders()[0])


class TestNorms:
    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("shape", [(1, 1), (5, 3), (3, 5), (64, 64), (128, 7)])
    @pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
    def test_measures_from_above_and_closely(self, norm, shape, scale, eps):
        weight = scale * torch.randn(shape)
        measured, truth = float(norm.measure(weight)), float(true_norm(weight, norm))
        loose = 1.0 if norm == fp.InfNorm() else min(shape) ** (1 / 2 ** (norm.iterations + 1))
        assert truth * (1 - 100 * eps) <= measured <= truth * loose * (1 + 100 * eps)

    @pytest.mark.parametrize("norm", NORMS)
    def test_projects_only_what_is_too_large(self, norm, eps):
        weight = torch.randn(6, 6)
        small = 0.1 * weight / true_norm(weight, norm)
        assert torch.equal(norm.project(small, 0.9), small)
        assert 0.88 < float(true_norm(norm.project(50 * weight, 0.9), norm)) <= 0.9 * (1 + 10 * eps)

    def test_inf_norm_shrinks_row_by_row(self, eps):
        weight = torch.tensor([[3.0, -1.0], [0.25, 0.25]])
        projected = fp.InfNorm().project(weight, 0.8)
        torch.testing.assert_close(projected, torch.tensor([[0.6, -0.2], [0.25, 0.25]]), atol=4 * eps, rtol=0)

    @pytest.mark.parametrize("norm", NORMS)
    def test_zero_weights(self, norm):
        weight = torch.zeros(3, 4, requires_grad=True)
        projected = norm.project(weight, 0.9)
        assert not projected.any()
        (gradient,) = torch.autograd.grad(projected.sum(), weight)
        assert bool(gradient.isfinite().all())

    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("scale", [0.01, 10.0])
    def test_gradcheck(self, norm, scale):
        weight = (scale * torch.randn(4, 3, dtype=torch.float64)).requires_grad_()
        assert torch.autograd.gradcheck(lambda w: norm.project(w, 0.9), (weight,))

    def test_bad_iterations(self):
        with pytest.raises(ValueError, match="at least 1; got 0"):
            fp.Gram(iterations=0)


class TestLinear:
    @pytest.mark.parametrize("norm", NORMS)
    def test_stays_bounded_under_adversarial_training(self, norm, eps):
        layer = fp.LipschitzLinear(8, 6, bound=0.9, norm=norm)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
        for _ in range(200):
            optimizer.zero_grad()
            (-layer(torch.randn(16, 8)).square().sum()).backward()
            optimizer.step()
        assert float(true_norm(layer.bounded_weight().detach(), norm)) <= 0.9 * (1 + 10 * eps)
        assert float(true_norm(layer.weight.detach(), norm)) > 1

    def test_train_mode_is_a_pure_function(self):
        layer, x = fp.LipschitzLinear(3, 3, norm=fp.Gram()), torch.randn(4, 3)
        assert torch.equal(layer(x), layer(x))
        assert set(layer.state_dict()) == {"weight", "bias"}

    def test_repr_names_the_bound(self):
        assert "bound=0.5, norm=InfNorm()" in repr(fp.LipschitzLinear(3, 4, bound=0.5))

    @pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
    def test_bad_bound(self, bound):
        with pytest.raises(fp.LipschitzError, match="positive finite number"):
            fp.LipschitzLinear(3, 3, bound=bound)


class TestActivations:
    def test_the_constant_of_lipswish_is_the_largest_slope_of_swish(self):
        x = torch.linspace(2.3, 2.5, 200_001, dtype=torch.float64)
        gate = torch.sigmoid(x)
        largest = float((gate * (1 + x * (1 - gate))).max())
        assert largest <= SWISH_SLOPE <= largest * (1 + 1e-7)

    @pytest.mark.parametrize("make", [fp.LipSwish, fp.Sine, lambda: fp.Sine(3.0)])
    def test_slope_is_right_and_at_most_1(self, make, eps):
        activation, x = make(), torch.linspace(-20, 20, 4001, requires_grad=True)
        (slope,) = torch.autograd.grad(activation(x).sum(), x)
        torch.testing.assert_close(activation.derivative(x), slope, atol=20 * eps, rtol=20 * eps)
        assert float(slope.abs().max()) <= 1 + 10 * eps
        assert float(slope.max()) > 0.999
        frequency = activation.frequency(1)
        value, unit = activation.linearize(frequency * x)
        torch.testing.assert_close(value / frequency, activation(x), atol=20 * eps, rtol=20 * eps)
        torch.testing.assert_close(unit, slope, atol=20 * eps, rtol=20 * eps)

    def test_bad_frequency(self):
        with pytest.raises(ValueError, match="positive; got 0"):
            fp.Sine(0.0)
        for highest in (0.5, math.inf, math.nan):
            with pytest.raises(ValueError, match="at least 1 and finite"):
                fp.SineHuber(highest)

    def test_sines_and_pseudo_huber_functions_at_a_ladder_of_frequencies(self, eps):
        activation, x = fp.SineHuber(16.0), torch.linspace(-3, 3, 100).unsqueeze(1)
        with torch.no_grad():
            activation.log_frequency.copy_(torch.tensor([0.5, -0.5]))
        first, second = (1, 4, 16), (1, 16)
        columns = [torch.sin(math.exp(0.5) * w * x) / (math.exp(0.5) * w) for w in first]
        for w in (math.exp(-0.5) * w for w in second):
            columns.append((torch.sqrt(1 + (w * x) ** 2) - 1) / w)
        value = activation(x.expand(-1, 5))
        torch.testing.assert_close(value, torch.cat(columns, dim=1), atol=20 * eps, rtol=20 * eps)
        pixels = x.expand(-1, 5)[..., None, None].expand(-1, 5, 2, 3)
        assert torch.equal(activation(pixels), value[..., None, None].expand_as(pixels))
        assert activation(torch.zeros(2, 1)).shape == (2, 1)
        with pytest.raises(fp.ShapeError, match=r"\(B, channels, \*spatial\); got \(3,\)"):
            activation(torch.zeros(3))

    def test_slopes_of_every_channel_are_right_and_at_most_1(self, eps):
        # A frequency of 30 makes of the rounding of its arguments, up to 600, an error of a slope of 600 eps.
        activation, x = fp.SineHuber(), torch.linspace(-20, 20, 401).unsqueeze(1).expand(-1, 6).clone().requires_grad_()
        (slope,) = torch.autograd.grad(activation(x).sum(), x)
        torch.testing.assert_close(activation.derivative(x), slope, atol=1e3 * eps, rtol=1e3 * eps)
        assert float(slope.abs().max()) <= 1 + 10 * eps
        assert float(slope.amax(0).min()) > 0.9
        assert float(slope.amin(0).max()) < -0.9
        frequency = activation.frequency(6)
        value, unit = activation.linearize(frequency * x)
        torch.testing.assert_close(value / frequency, activation(x), atol=20 * eps, rtol=20 * eps)
        torch.testing.assert_close(unit, slope, atol=1e3 * eps, rtol=1e3 * eps)

    def test_half_precision_does_not_overflow(self):
        activation, x = fp.SineHuber(1.0).half(), torch.full((1, 2), 1e3, dtype=torch.float16)
        value, slope = activation.linearize(x)
        assert value.dtype == slope.dtype == torch.float16
        assert [out[0, 1].item() for out in (value, slope, activation(x))] == [999, 1, 999]

    def test_autocast_to_half_precision_far_out(self):
        g, x = fp.LipschitzMLP(4, (16,)), 100 * torch.randn(20, 4)
        wanted = g(x).detach()
        with torch.no_grad(), torch.autocast("cpu", torch.float16):
            y = g.branch(None).linearize(x).y
        assert float((y - wanted).abs().amax()) <= 2 * torch.finfo(torch.float16).eps * float(x.abs().amax())

    def test_all_derivatives_of_value_and_slope(self):
        activation, x = fp.SineHuber(3.0).double(), torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(activation.linearize, x)
        assert torch.autograd.gradgradcheck(activation.linearize, x)

    @pytest.mark.parametrize("order", [1.0, 1.5, 2.0, 3.0, math.inf])
    @pytest.mark.parametrize("scaled", [1.0, 2.0, math.inf])
    def test_concatenated_swish_has_its_exact_constant_in_every_norm(self, order, scaled):
        activation, x = fp.CLipSwish(scaled), torch.linspace(-10, 10, 100_001).unsqueeze(1).requires_grad_()
        slopes = [torch.autograd.grad(activation(x)[:, i].sum(), x)[0] for i in range(2)]
        largest = float(torch.linalg.vector_norm(torch.cat(slopes, dim=1), order, dim=1).max())
        bound = activation.lipschitz_bound_in(order)
        assert bound.domain == order
        assert largest * (1 - 1e-6) <= float(bound) <= largest * (1 + 1e-6)
        assert (float(bound) <= 1 + 1e-9) == (order >= scaled)

    def test_the_constants_of_concatenated_swish(self):
        """Of the pair before scaling: what its docstring says."""
        constants = {p: 1 / float(fp.CLipSwish(p).lipschitz_bound_in(math.inf)) for p in (1.0, 2.0)}
        swish = float(fp.lipschitz_bound(nn.SiLU()))
        assert [swish * constants[1.0], swish * constants[2.0], swish] == pytest.approx(
            [1.1997, 1.1044, 1.0998], abs=5e-5
        )

    def test_concatenated_swish_adds_up(self, eps):
        activation, x = fp.CLipSwish(math.inf), torch.randn(4, 3)
        right, left = activation(x).chunk(2, dim=1)
        torch.testing.assert_close((right - left) * float(fp.lipschitz_bound(nn.SiLU())), x, atol=10 * eps, rtol=0)
        torch.testing.assert_close(activation(-x), torch.cat([left, right], dim=1), atol=10 * eps, rtol=0)

    def test_a_bad_order(self):
        with pytest.raises(fp.LipschitzError, match=r"CLipSwish\(order=...\) must be in \[1, inf\]; got 0.5"):
            fp.CLipSwish(0.5)

    @pytest.mark.parametrize("activation", [fp.GroupSort(3), fp.FullSort(), fp.MaxMin()])
    def test_sorting_keeps_entries_and_every_norm_of_differences(self, activation):
        x, other = torch.randn(2, 500, 6)
        y = activation(x)
        assert torch.equal(y.sort(dim=1).values, x.sort(dim=1).values)
        for order in (1.0, 1.5, 2.0, math.inf):
            before, after = (torch.linalg.vector_norm(d, order, dim=1) for d in (x - other, y - activation(other)))
            assert bool((after <= before * 1.00001).all())
        image = torch.randn(2, 6, 3, 3)
        pixels = activation(image.movedim(1, -1).reshape(-1, 6)).reshape(2, 3, 3, 6).movedim(-1, 1)
        assert torch.equal(activation(image), pixels)

    def test_sorting_within_groups(self):
        x = torch.tensor([[3.0, 1.0, 2.0, 9.0, 8.0, 7.0]])
        assert fp.MaxMin()(x).tolist() == [[1, 3, 2, 9, 7, 8]]
        with pytest.raises(fp.ShapeError, match=r"GroupSort\(4\) expects .* groups of 4; got \(1, 6\)"):
            fp.GroupSort(4)(x)
        with pytest.raises(ValueError, match="at least 1; got 0"):
            fp.GroupSort(0)


class TestMLP:
    @pytest.mark.parametrize("norm", NORMS)
    def test_bound_is_that_of_the_whole_network(self, norm):
        g = fp.LipschitzMLP(3, (8, 8, 8), bound=0.9, norm=norm)
        with torch.no_grad():
            for parameter in g.parameters():
                parameter.mul_(100)
        bound = fp.lipschitz_bound(g)
        assert bound.domain == norm.orders()[0]
        assert 0.88 < float(bound) <= 0.9 * 1.00001

    @pytest.mark.parametrize("activation", [fp.SineHuber, lambda: fp.Sine(3.0), fp.LipSwish, nn.Tanh])
    def test_jacobian_is_that_of_autograd(self, activation, eps):
        g = fp.LipschitzMLP(3, (8, 8), context_features=2, activation=activation)
        x, context = torch.randn(5, 3), torch.randn(5, 2)
        y, jacobian = g.branch(context).jacobian(x)
        torch.testing.assert_close(y, g(x, context), atol=10 * eps, rtol=0)
        for row in range(5):
            wanted = torch.autograd.functional.jacobian(lambda z, row=row: g(z, context[row]), x[row])
            torch.testing.assert_close(jacobian[row], wanted, atol=10 * eps, rtol=0)
        parameters = list(g.parameters())
        grads, wanted = (torch.autograd.grad(out.square().sum(), parameters) for out in (y, g(x, context)))
        for grad, other in zip(grads, wanted, strict=True):
            torch.testing.assert_close(grad, other, atol=100 * eps, rtol=0)

    def test_rows_select_the_context(self, eps):
        g = fp.LipschitzMLP(3, (8,), context_features=2)
        x, context, index = torch.randn(5, 3), torch.randn(5, 2), torch.tensor([4, 1])
        torch.testing.assert_close(
            g.branch(context).select(index)(x[index]), g(x, context)[index], atol=4 * eps, rtol=0
        )

    @pytest.mark.parametrize("bound", [0.0, 1.0, 1.2, math.nan])
    def test_bad_bound(self, bound):
        with pytest.raises(fp.LipschitzError, match=r"must be in \(0, 1\)"):
            fp.LipschitzMLP(3, bound=bound)

    def test_bad_sizes(self):
        for features, hidden in ((0, (4,)), (3, (4, 0)), ((3, 0, 2), (4,))):
            with pytest.raises(fp.ShapeError, match="positive sizes"):
                fp.LipschitzMLP(features, hidden)

    def test_activation_with_too_large_a_bound(self):
        with pytest.raises(fp.LipschitzError, match="ELU has the bound 2 in every p-norm, above 1"):
            fp.LipschitzMLP(3, activation=lambda: nn.ELU(alpha=2.0))

    def test_called_alone_it_checks_its_input(self):
        g = fp.LipschitzMLP(3, context_features=2)
        with pytest.raises(fp.ShapeError, match=r"\(\*batch, \*\(3,\)\)"):
            g(torch.randn(4, 5), torch.randn(4, 2))
        with pytest.raises(fp.ContextError, match="width 2; got none"):
            g(torch.randn(4, 3))
        with pytest.raises(fp.ContextError, match="width 2; got shape"):
            g(torch.randn(4, 3), torch.randn(4, 3))

    def test_repr_and_no_hidden_layer(self):
        g = fp.LipschitzMLP(3, ())
        assert fp.ResidualTransform(g)(torch.randn(4, 3))[0].shape == (4, 3)
        assert "bound=0.97, norm=PathNorm()" in repr(g)
        assert "LipschitzLinear" in repr(fp.LipschitzMLP(3, norm=fp.Gram()))


class TestBound:
    @pytest.mark.parametrize(
        ("module", "value", "norm"),
        [
            (nn.Tanh(), 1.0, None),
            (nn.Sigmoid(), 0.25, None),
            (nn.ELU(alpha=2.0), 2.0, None),
            (nn.LeakyReLU(-3.0), 3.0, None),
            (nn.PReLU(init=3.0), 3.0, None),
            (nn.SiLU(), SWISH_SLOPE, None),
            (nn.Softplus(beta=3.0), 1.0, None),
            (nn.Hardtanh(), 1.0, None),
            (nn.PixelUnshuffle(2), 1.0, None),
            (fp.MaxMin(), 1.0, None),
            (fp.CLipSwish(), 1.0, 2.0),
            (nn.Sequential(nn.Sigmoid(), nn.ELU(alpha=2.0)), 0.5, None),
        ],
    )
    def test_known_modules(self, module, value, norm):
        assert fp.lipschitz_bound(module)[:2] == (value, norm)

    @pytest.mark.parametrize(
        "module",
        [
            *(nn.ReLU(), nn.Hardtanh(), nn.Tanh(), nn.Softsign(), nn.Softplus(beta=4.0), nn.LogSigmoid()),
            *(nn.Sigmoid(), nn.ELU(alpha=2.0), nn.LeakyReLU(-3.0), nn.PReLU(init=2.0), nn.SiLU()),
        ],
        ids=lambda module: type(module).__name__,
    )
    def test_bounds_of_activations_are_their_largest_slopes(self, module):
        x = torch.linspace(-30, 30, 60_001, requires_grad=True)
        (slope,) = torch.autograd.grad(module(x).sum(), x)
        assert float(slope.abs().max()) == pytest.approx(float(fp.lipschitz_bound(module)), rel=1e-3)

    def test_plain_linear_layers_by_their_2_norm(self, eps):
        layer = nn.Linear(3, 4)
        bound = fp.lipschitz_bound(nn.Sequential(layer, nn.Tanh()))
        assert bound.domain == 2
        truth = float(torch.linalg.matrix_norm(layer.weight.detach(), 2))
        assert abs(float(bound) - truth) <= 10 * eps

    def test_it_holds_for_jacobians_at_random_points(self):
        for norm in NORMS:
            g = small_mlp(norm=norm)
            jacobian = Branch.of(g, None).jacobian(3 * torch.randn(500, 3))[1]
            assert float(true_norm(jacobian, norm).max().detach()) <= float(fp.lipschitz_bound(g))

    @pytest.mark.parametrize("module", [nn.Dropout(), nn.BatchNorm1d(3), nn.GELU()])
    def test_unknown_modules_are_refused_by_name(self, module):
        name = type(module).__name__
        with pytest.raises(fp.LipschitzError, match=rf"no Lipschitz bound is known for torch\..*\.{name}: "):
            fp.ResidualTransform(nn.Sequential(fp.LipschitzLinear(3, 3), module))

    def test_different_norms_do_not_multiply(self):
        g = nn.Sequential(fp.LipschitzLinear(3, 3), fp.LipschitzLinear(3, 3, norm=fp.Gram()))
        with pytest.raises(fp.LipschitzError, match="different norms"):
            fp.lipschitz_bound(g)

    def test_a_bound_of_1_or_more_is_refused_at_construction(self):
        layer = fp.LipschitzLinear(1, 1, bound=1.0)
        nn.init.constant_(layer.weight, 2.0)
        with pytest.raises(fp.LipschitzError, match="g = Sequential has the Lipschitz bound 1 in the inf-norm"):
            fp.ResidualTransform(nn.Sequential(layer))

    def test_a_bound_that_grew_is_refused_where_invertibility_matters(self):
        layer = nn.Linear(3, 3)
        with torch.no_grad():
            layer.weight.mul_(0.1)
        transform, x = fp.ResidualTransform(nn.Sequential(layer, nn.Tanh())), torch.randn(4, 3)
        transform.eval()(x)
        with torch.no_grad():
            layer.weight.mul_(100)
        for training, call in ((False, transform), (False, transform.inverse), (True, transform.inverse)):
            transform.train(training)
            with pytest.raises(fp.LipschitzError, match="needs one below 1: scale its layers down"):
                call(x)

    def test_a_users_module_is_accepted_once_registered(self):
        class Mine(nn.Module):
            def forward(self, x):
                return 0.5 * x.sin()

        with pytest.raises(fp.LipschitzError, match="Mine: build g from flowplug's"):
            fp.ResidualTransform(Mine())

        @fp.lipschitz_bound.register
        def _(module: Mine) -> fp.LipschitzBound:
            return fp.LipschitzBound(0.5)

        assert float(fp.ResidualTransform(Mine()).lipschitz) == 0.5

    @pytest.mark.parametrize(
        "make",
        [
            lambda kind: kind(nn.Linear)(2, 2),
            lambda kind: kind(nn.Sequential)(nn.Tanh()),
            lambda kind: kind(nn.Tanh)(),
            lambda kind: kind(nn.Conv2d)(2, 2, 3),
            lambda kind: kind(fp.LipschitzLinear)(2, 2),
            lambda kind: kind(fp.LipschitzConv2d)(2, 2, 3),
            lambda kind: kind(fp.LipschitzMLP)(2),
            lambda kind: kind(fp.MaxMin)(),
            lambda kind: kind(fp.CLipSwish)(),
            lambda kind: kind(fp.Sine)(),
            lambda kind: kind(fp.SineHuber)(),
            lambda kind: nn.Sequential(fp.LipschitzLinear(2, 2), kind(fp.CLipSwish)(math.inf)),
        ],
    )
    def test_a_subclass_has_the_bound_of_its_base_unless_it_replaces_forward(self, make):
        def same(base):
            return type("Same", (base,), {})

        def doubled(base):
            return type("Doubled", (base,), {"forward": lambda self, x: 2 * base.forward(self, x)})

        assert float(fp.lipschitz_bound(make(same))) > 0
        with pytest.raises(fp.LipschitzError, match="Doubled replaces the forward of"):
            fp.lipschitz_bound(make(doubled))
