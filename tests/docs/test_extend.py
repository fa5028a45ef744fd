"""The parts that docs/extend.md writes obey the laws of what they stand in for."""

import itertools
import math

import pytest
import torch
from torch import nn

import flowplug as fp
from cases import Row
from flowplug.testing import LAWS, Case, z_test
from matrix import check


def residual(g=None, *, logdet=None, **keywords):
    g = fp.LipschitzMLP(3, (8,), bound=0.7) if g is None else g
    return fp.ResidualTransform(g, logdet=logdet, eval_logdet=logdet, **keywords)


def network(**keywords):
    return fp.LipschitzMLP(3, (8, 8), bound=0.9, **keywords)


RESIDUAL = {
    "Halving": lambda page, **k: residual(logdet=fp.PowerSeries(terms=page.Halving(stride=2)), **k),
    "PowerLaw": lambda page, **k: residual(logdet=fp.PowerSeries(terms=fp.Roulette(page.PowerLaw())), **k),
    "Sphere": lambda page, **k: residual(logdet=fp.Krylov(probes=page.Sphere(samples=2)), **k),
    "SmallTrace": lambda page, **k: residual(logdet=fp.Krylov(control=page.SmallTrace()), **k),
    "Direct": lambda page, **k: residual(logdet=fp.Krylov(gradient=page.Direct()), **k),
    "Direct Recompute": lambda page, **k: residual(logdet=fp.Krylov(gradient=fp.Recompute(page.Direct())), **k),
    "TwoSums": lambda page, **k: residual(network(norm=page.TwoSums()), **k),
    "SpectralProduct": lambda page, **k: residual(network(norm=page.SpectralProduct()), **k),
    "Arsinh": lambda page, **k: residual(network(activation=page.Arsinh), **k),
    "Erf": lambda page, **k: residual(network(activation=page.Erf), **k),
    "Pull": lambda page, **k: residual(page.Pull(3), **k),
    "Radial": lambda page, **k: residual(page.Radial(3), logdet=fp.Krylov(), **k),
    "Radial exact": lambda page, **k: residual(page.Radial(3), logdet=fp.ExactLogDet(), **k),
    "Radial closed form": lambda page, **k: residual(page.Radial(3), logdet=page.RadialLogDet(), **k),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", RESIDUAL)
def test_a_residual_transform_obeys_every_law(page, name, law):
    check(Row(lambda **keywords: RESIDUAL[name](page, **keywords)), law)


def dense(page, **keywords):
    return fp.DenseTransform(3, gradient=page.BothSides(), **keywords)


def convolution(page, **keywords):
    return fp.CircularConv2d(2, activation=fp.TanhLinear(), gradient=page.BothSides(), **keywords)


# What the gradient leaves is none, so two laws about gradients do not apply; see the test of its two forms.
NO_GRADIENT = {"gradient of the ladj", "derivative of the inverse"}


@pytest.mark.parametrize("law", [law for law in LAWS if law not in NO_GRADIENT])
@pytest.mark.parametrize(("make", "event"), [(dense, (3,)), (convolution, (2, 3, 4))])
def test_a_dense_transform_obeys_the_laws(page, make, event, law):
    check(Row(lambda **keywords: make(page, **keywords), event), law)


@pytest.mark.parametrize("count", [1, 5, 64])
def test_the_terms_have_their_weights_on_average(page, count):
    def shares():
        schedule = page.Halving(stride=2).schedule(count, None, None)
        assert all(a[1] >= b[1] for a, b in itertools.pairwise(schedule))
        return torch.tensor([weight * left / count for weight, left in schedule] + 12 * [0.0])[:12]

    z_test("share", ([shares()] for _ in range(2000)), [torch.ones(12)])
    assert math.isclose(page.Halving(stride=2).decay(0.5) ** 2, 0.5)


def test_the_length_is_a_distribution_with_its_decay(page):
    survival = [page.PowerLaw().survival(m) for m in range(1000)]
    assert survival[0] == 1
    assert all(a > b > 0 for a, b in itertools.pairwise(survival))
    assert math.isclose(survival[999] / survival[998], page.PowerLaw().decay(0.5), rel_tol=0.01)
    assert math.isclose(sum(survival), math.pi**2 / 6, rel_tol=0.001)


def test_the_probes_have_the_identity_as_second_moment(page):
    def moment():
        v = page.Sphere(samples=100).draw(torch.zeros(3, 2, 2), None).flatten(2)
        return torch.einsum("sbi,sbj->bij", v, v) / len(v)

    z_test("second moment", ([moment()] for _ in range(1000)), [torch.eye(4).expand(3, 4, 4)])


@pytest.mark.parametrize("g", [lambda: fp.LipschitzMLP(3, (8, 8, 8)), lambda: fp.LipschitzCNN(1, (4,))])
def test_the_control_is_the_trace(page, g):
    x = torch.randn(5, 3) if isinstance(g(), fp.LipschitzMLP) else torch.randn(5, 1, 2, 3)
    branch = fp.Branch.of(g(), None)
    trace = page.SmallTrace()(branch.linearize(x))
    torch.testing.assert_close(trace, branch.jacobian(x)[1].diagonal(dim1=1, dim2=2).sum(1))
    assert trace.requires_grad
    assert page.SmallTrace(most=2)(branch.linearize(x)) is None


@pytest.mark.parametrize("control", [None, fp.ExactTrace()])
def test_the_gradient_keeps_the_value_and_has_no_error_of_truncation(page, control):
    def make(gradient):
        return residual(g, logdet=fp.Krylov(fp.Truncated(2), gradient=gradient, control=control))

    x, g = torch.randn(4, 3), network()
    ours, series = make(page.Direct()), make(fp.Neumann())
    series.load_state_dict(ours.state_dict())
    assert torch.equal(ours.eval()(x)[1], series.eval()(x)[1])
    LAWS["gradient of the ladj"](Case(lambda: ours, x))


def dense_map(weight, side):
    """The matrix of a convolution on images of a side, or the weight itself."""
    if weight.dim() == 2:
        return weight
    x = torch.eye(weight.shape[1] * side**2).reshape(-1, weight.shape[1], side, side)
    return torch.nn.functional.conv2d(x, weight, padding=weight.shape[-1] // 2).flatten(1).T


@pytest.mark.parametrize("shape", [(5, 5), (2, 7), (7, 2), (4, 3, 3, 3)])
def test_the_norm_is_not_below_the_true_one(page, shape):
    for _ in range(20):
        weight = torch.randn(shape)
        measured = page.TwoSums().measure(weight)
        assert torch.linalg.matrix_norm(dense_map(weight, 5), 2) <= measured
        torch.testing.assert_close(page.TwoSums().measure(page.TwoSums().project(weight, 0.9)), torch.tensor(0.9))
    zero = torch.zeros(shape, requires_grad=True)
    page.TwoSums().project(zero, 0.9).sum().backward()
    assert zero.grad.isfinite().all()


def test_the_norm_of_a_network_is_not_below_the_true_one_and_within_the_bound(page):
    norm, eps = page.SpectralProduct(), torch.finfo(torch.get_default_dtype()).eps
    weights, activations = [3 * torch.randn(8, 3), torch.randn(3, 8)], [nn.PReLU(init=2.0)]
    true = 2 * math.prod(float(torch.linalg.matrix_norm(weight, 2)) for weight in weights)
    assert true <= float(norm.certify(weights, activations)) * (1 + 10 * eps) <= 1.1 * true
    projected = norm.project(weights, activations, 0.9)
    assert float(norm.certify(projected, activations)) <= 0.9 * (1 + 100 * eps)
    torch.testing.assert_close(norm.project(projected, activations, 0.95), projected)


def test_the_norm_of_a_network_bounds_convolutions(page):
    def make(**keywords):
        return residual(fp.LipschitzCNN(1, (4,), norm=page.SpectralProduct(), **keywords))

    LAWS["Lipschitz bound"](Case(make, torch.randn(4, 1, 3, 3)))


def test_activations_have_their_derivative_and_slope(page, eps):
    x = torch.linspace(-5, 5, 101, requires_grad=True)
    for activation in (page.Arsinh(), page.Erf()):
        (slope,) = torch.autograd.grad(activation(x).sum(), x)
        assert slope.abs().amax() <= 1 + 2 * eps
    torch.testing.assert_close(page.Arsinh().derivative(x), 1 / (1 + x**2).sqrt())
    assert fp.lipschitz_bound(page.Erf()).elementwise
    assert fp.lipschitz_bound(page.Arsinh()).elementwise


def test_the_closed_form_is_the_derivative(page):
    branch, x, v = fp.Branch.of(page.Radial(3), None), torch.randn(5, 3), torch.randn(5, 3)
    general = fp.Branch(branch.g, None)
    (y, jacobian), (wanted_y, wanted) = branch.jacobian(x), general.jacobian(x)
    linear = branch.linearize(x)
    torch.testing.assert_close(y, wanted_y)
    torch.testing.assert_close(jacobian, wanted)
    torch.testing.assert_close(linear.vjp(v), torch.einsum("bij,bi->bj", wanted, v))
    torch.testing.assert_close(linear.trace(), wanted.diagonal(dim1=1, dim2=2).sum(1))
    torch.testing.assert_close(linear.select(slice(2)).vjp(v[:2]), linear.vjp(v)[:2])
    assert not linear.vjp(v).requires_grad
    assert linear.vjp(v, create_graph=True).requires_grad


def test_the_closed_form_refuses_another_branch(page):
    with pytest.raises(TypeError, match="RadialLogDet"):
        residual(logdet=page.RadialLogDet())(torch.randn(4, 3))


def test_the_solution_is_within_the_tolerance(page):
    g, y = network(), 3 * torch.randn(100, 3)
    branch = fp.Branch.of(g, None)
    x = page.Damped(tol=1e-3)(branch, y)
    error = (x - fp.FixedPoint()(branch, y)).abs().amax()
    assert 0 < error <= 1e-3
    assert page.Damped()(branch, y[:0]).shape == (0, 3)


def test_a_solution_that_is_not_found_is_an_error(page):
    branch = fp.Branch.of(network(), None)
    with pytest.raises(fp.NotConverged, match="Damped"):
        page.Damped(max_steps=1)(branch, torch.randn(4, 3))
    with pytest.raises(fp.NotConverged, match="nan"):
        page.Damped()(branch, torch.full((4, 3), torch.nan))


@pytest.mark.parametrize("law", ["round trip", "ladj of the inverse", "every parameter", "derivative of the inverse"])
def test_the_solver_obeys_the_laws_of_inverses(page, eps, law):
    LAWS[law](Case(lambda: residual(solver=page.Damped(tol=40 * eps)), torch.randn(4, 3)))


@pytest.mark.parametrize("law", ["shape and dtype", "inputs left alone", "saving and copying"])
def test_the_solver_obeys_the_laws_of_transforms(page, law):
    LAWS[law](Case(lambda: residual(solver=page.Damped()), torch.randn(4, 3)))


def test_the_dense_gradient_has_two_forms_of_one_direction_of_descent(page):
    x, weights = torch.randn(6, 3), torch.randn(6)
    left = fp.DenseTransform(3, gradient=page.BothSides())
    ordinary = fp.DenseTransform(3, gradient=fp.Euclidean())
    left.bias.data.normal_()
    ordinary.load_state_dict(left.state_dict())
    for transform in (left, ordinary):
        y, ladj = transform(x)
        (y.square().sum() + weights @ ladj).backward()
    direction, gradient = (torch.cat([t.weight.grad, t.bias.grad[:, None]], dim=1) for t in (left, ordinary))
    last = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    matrix = torch.cat([torch.cat([left.weight, left.bias[:, None]], dim=1), last]).detach()
    torch.testing.assert_close(direction, page.BothSides().precondition(gradient, matrix))
    assert (direction * gradient).sum() > 0


def test_an_old_value_moves_the_reported_loss_alone(page):
    x, old = torch.randn(6, 3), fp.DenseTransform(3, activation=None, value=page.Once())
    served = old(x)[1].detach()
    old.weight.data.mul_(1.1)
    new = fp.DenseTransform(3, activation=None)
    new.load_state_dict(old.state_dict())
    for transform in (old, new):
        y, ladj = transform(x)
        (y.square().sum() - ladj.sum()).backward()
    assert torch.equal(old(x)[1], served)
    assert torch.equal(old.weight.grad, new.weight.grad)
    torch.testing.assert_close(old.eval()(x)[1], served + 3 * math.log(1.1))
