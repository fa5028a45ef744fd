"""Element-wise activations, flowplug's, torch's and a user's own: slopes, and what networks make of them."""

import pytest
import torch
from torch import nn

import flowplug as fp
from helpers import spread


@pytest.mark.parametrize("make", [fp.LipSwish, fp.Sine, lambda: fp.Sine(3.0)])
def test_slope_is_right_and_at_most_1(make, eps):
    activation, x = make(), torch.linspace(-20, 20, 4001, requires_grad=True)
    (slope,) = torch.autograd.grad(activation(x).sum(), x)
    torch.testing.assert_close(activation.derivative(x), slope, atol=20 * eps, rtol=20 * eps)
    assert float(slope.abs().max()) <= 1 + 10 * eps
    assert float(slope.max()) > 0.999
    frequency = activation.frequency(1)
    value, unit = activation.linearize(frequency * x)
    torch.testing.assert_close(value / frequency, activation(x), atol=20 * eps, rtol=20 * eps)
    torch.testing.assert_close(unit, slope, atol=20 * eps, rtol=20 * eps)


@pytest.mark.parametrize("make", [fp.LipSwish, fp.Sine, fp.SineHuber])
def test_slopes_have_derivatives_to_the_third(make):
    """Each taken once, with a backward pass of its own."""
    activation, x = make().double(), torch.linspace(-3, 3, 8, dtype=torch.float64).reshape(2, 4).requires_grad_()
    for wanted in (lambda at: activation.linearize(at)[0], lambda at: activation.linearize(at)[1]):
        assert torch.autograd.gradcheck(wanted, x)
        assert torch.autograd.gradgradcheck(wanted, x)
    assert torch.autograd.gradgradcheck(lambda at: activation.linearize(at), x)


OWN = (fp.Sine, fp.SineHuber, fp.LipSwish)
OTHERS = (nn.ELU, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.LogSigmoid, nn.PReLU, nn.ReLU)


@pytest.mark.parametrize("module", [*OWN, *OTHERS, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Softsign, nn.Tanh])
def test_elementwise_activations_are_elementwise(module):
    x = torch.randn(1, 6)
    activation = module()
    assert fp.lipschitz_bound(activation).elementwise
    jacobian = torch.autograd.functional.jacobian(activation, x)[0, :, 0]
    assert not bool((jacobian - jacobian.diagonal().diag()).any())


class Arctan(nn.Module):
    """A user's own element-wise module, of unknown derivative."""

    def forward(self, x):
        return x.arctan()


@fp.lipschitz_bound.register
def _(module: Arctan):
    return fp.LipschitzBound(1.0, elementwise=True)


class Inverse(fp.Activation):
    """A user's own activation with its derivative."""

    def forward(self, x):
        return x.arctan()

    def derivative(self, x):
        return 1 / (1 + x.square())


@pytest.mark.parametrize("activation", [Arctan, Inverse])
def test_a_users_activation_is_as_good_as_torchs(activation, eps):
    """It uses the bound as `nn.Tanh` does, and has a Jacobian in one chain."""
    g = spread(fp.LipschitzMLP(4, (32,), activation=activation))
    tanh = fp.LipschitzMLP(4, (32,), activation=nn.Tanh)
    tanh.load_state_dict(g.state_dict())
    for mine, theirs in zip(g.bounded_weights(), tanh.bounded_weights(), strict=True):
        assert torch.equal(mine, theirs)
    x = torch.randn(5, 4)
    y, jacobian = fp.Branch.of(g, None).jacobian(x)
    wanted = torch.stack([torch.autograd.functional.jacobian(g, row) for row in x])
    torch.testing.assert_close(y, g(x), atol=10 * eps, rtol=0)
    torch.testing.assert_close(jacobian, wanted, atol=10 * eps, rtol=0)
    assert fp.Branch.of(g, None).linearize(x).trace() is not None


@pytest.mark.parametrize("activation", [Arctan, nn.PReLU])
def test_slopes_found_by_autograd_have_exact_derivatives(activation):
    g = fp.LipschitzMLP(2, (4,), activation=activation).double()
    parameters, x = dict(g.named_parameters()), torch.randn(3, 2, dtype=torch.float64)

    transform = fp.ResidualTransform(g, logdet=fp.ExactLogDet())

    def ladj(x, *values):
        named = {f"g.{name}": value for name, value in zip(parameters, values, strict=True)}
        return torch.func.functional_call(transform, named, (x,))[1]

    assert torch.autograd.gradcheck(ladj, (x.requires_grad_(), *parameters.values()))


IN_PLACE = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Hardtanh)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", IN_PLACE)
def test_activations_that_write_on_their_input(kind, training, eps):
    """They have the slopes of those that do not, with and without a graph."""
    results = []
    for inplace in (True, False):
        torch.manual_seed(0)
        g = fp.LipschitzMLP(3, (16,), activation=lambda inplace=inplace: kind(inplace=inplace))
        transform, x = fp.ResidualTransform(g).train(training), torch.randn(5, 3)
        with torch.set_grad_enabled(training):
            results.append(transform(x))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, atol=10 * eps, rtol=0)


class Doubled(nn.Module):
    """Wrongly declared: it makes two channels of one."""

    def forward(self, x):
        return torch.cat([x.relu(), (-x).relu()], dim=1)


@fp.lipschitz_bound.register
def _(module: Doubled):
    return fp.LipschitzBound(1.0, elementwise=True)


@pytest.mark.parametrize("norm", [fp.PathNorm(), fp.InfNorm()])
def test_an_elementwise_module_keeps_the_width(norm):
    with pytest.raises(fp.LipschitzError, match="declared element-wise, and makes 16 channels of 8"):
        fp.LipschitzMLP(3, (8,), norm=norm, activation=Doubled)
