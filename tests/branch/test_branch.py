"""The branch of one pass: what g looks like to estimators and solvers."""

import pytest
import torch
from torch import nn

import flowplug as fp
from cases import small_mlp


class DeepOperator(nn.Module):
    """A plain g with a part called branch, the word of DeepONets."""

    def __init__(self):
        super().__init__()
        self.branch = fp.LipschitzLinear(3, 3, bound=0.9)

    def forward(self, x):
        return self.branch(x).tanh()


@fp.lipschitz_bound.register
def _(module: DeepOperator):
    return fp.lipschitz_bound(module.branch)


class Shared(fp.BranchModule):
    """A g that makes its own branch."""

    def forward(self, x):
        return 0.5 * x

    def branch(self, context):
        return Halves(self, context)


class Halves(fp.Branch):
    def select(self, index):
        return Halves(self.g, None if self.context is None else self.context[index])

    def certify(self):
        return fp.LipschitzBound(0.5)


fp.lipschitz_bound.register(Shared, lambda module: fp.LipschitzBound(0.5))


class Gated(nn.Module):
    """A conditional g of no known kind."""

    context_features = 1

    def forward(self, x, context):
        return 0.5 * context.sigmoid() * x.sin()


fp.lipschitz_bound.register(Gated, lambda module: fp.LipschitzBound(0.5))


class TestOf:
    def test_a_part_called_branch_is_no_branch(self, eps):
        g, x = DeepOperator(), torch.randn(5, 3)
        assert type(fp.Branch.of(g, None)) is fp.Branch
        transform = fp.ResidualTransform(g)
        plain = fp.ResidualTransform(nn.Sequential(g.branch, nn.Tanh()))
        torch.testing.assert_close(transform(x), plain(x), atol=10 * eps, rtol=0)
        torch.testing.assert_close(transform.inverse(transform(x)[0])[0], x, atol=100 * eps, rtol=0)

    def test_a_branch_module_makes_its_own(self, eps):
        g, x = Shared(), torch.randn(5, 3)
        assert type(fp.Branch.of(g, None)) is Halves
        y, ladj = fp.ResidualTransform(g)(x)
        torch.testing.assert_close(y, 1.5 * x, atol=10 * eps, rtol=0)
        torch.testing.assert_close(ladj, torch.tensor(1.5).log().expand(5) * 3, atol=10 * eps, rtol=0)

    def test_a_branch_module_without_a_branch_is_abstract(self):
        with pytest.raises(TypeError, match=r"abstract method '?branch"):
            type("Nothing", (fp.BranchModule,), {})()


class TestSelect:
    @pytest.mark.parametrize("index", [torch.tensor([4, 1], device="cpu"), slice(2)], ids=["tensor", "slice"])
    @pytest.mark.parametrize("make", [Gated, lambda: small_mlp(context_features=1)], ids=["plain", "network"])
    def test_rows_of_the_branch_and_of_its_derivative(self, make, index, eps):
        index = index if isinstance(index, slice) else index.to(torch.empty(0).device)
        branch, x, v = fp.Branch.of(make(), torch.randn(5, 1)), torch.randn(5, 3), torch.randn(5, 3)
        torch.testing.assert_close(branch.select(index)(x[index]), branch(x)[index], atol=10 * eps, rtol=0)
        linear = branch.linearize(x)
        wanted = linear.vjp(v)[index]
        torch.testing.assert_close(linear.select(index).vjp(v[index]), wanted, atol=10 * eps, rtol=0)
        twice = branch.select(index).select(slice(1))
        torch.testing.assert_close(twice(x[index][:1]), branch(x)[index][:1], atol=10 * eps, rtol=0)


class TestLinearization:
    @pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
    def test_any_g_in_any_grad_mode(self, mode, eps):
        g, context = Gated(), torch.randn(5, 1)
        x, v = torch.randn(5, 3), torch.randn(5, 3)
        slopes = 0.5 * context.sigmoid() * x.cos()
        with mode():
            branch = fp.Branch.of(g, context)
            linear, (y, jacobian) = branch.linearize(x), branch.jacobian(x)
            torch.testing.assert_close(linear.vjp(v), slopes * v, atol=10 * eps, rtol=0)
        torch.testing.assert_close(y, g(x, context), atol=10 * eps, rtol=0)
        torch.testing.assert_close(linear.y, y, atol=10 * eps, rtol=0)
        torch.testing.assert_close(jacobian, slopes.diag_embed(), atol=10 * eps, rtol=0)
        assert linear.trace() is None
        assert not x.requires_grad

    def test_linearization_holds_the_context_fixed(self, eps):
        g, x = small_mlp(context_features=2), torch.randn(4, 3, requires_grad=True)
        v = torch.randn(4, 3)
        joined, apart = (fp.Branch.of(g, c).linearize(x).vjp(v) for c in (x[:, :2], x[:, :2].detach()))
        torch.testing.assert_close(joined, apart, atol=10 * eps, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_a_g_that_writes_on_its_input(training, eps):
    """The caller's tensors stay, and both directions are those of a g that does not, with log-dets or without."""
    x, results = torch.randn(5, 3), []
    before = x.clone()
    for inplace in (True, False):
        torch.manual_seed(0)
        g = nn.Sequential(nn.ELU(inplace=inplace), fp.LipschitzLinear(3, 3, bound=0.9))
        transform = fp.ResidualTransform(g, logdet=fp.ExactLogDet()).train(training)
        with torch.set_grad_enabled(training):
            parts = [*transform(x), *transform.inverse(x)]
            with fp.no_logdet():
                parts += [transform(x)[0], transform.inverse(x)[0]]
        results.append(parts)
        assert torch.equal(x, before)
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, atol=20 * eps, rtol=0)
