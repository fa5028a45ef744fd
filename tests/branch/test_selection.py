"""Rows that leave a series: few evaluations of g, and the products of one evaluation at the rows that are left."""

import math

import pytest
import torch
from torch import nn

import flowplug as fp
from cases import small_mlp


class Counted(nn.Module):
    """A g of no known kind, and how often it was evaluated."""

    context_features = 1

    def __init__(self, width):
        super().__init__()
        self.g, self.count = small_mlp(width, context_features=1), 0

    def forward(self, x, context):
        self.count += 1
        return self.g(x, context)


fp.lipschitz_bound.register(Counted, lambda module: fp.LipschitzBound(0.97, math.inf, limit=0.97))

GRADIENTS = [fp.Neumann(), fp.Autograd(), fp.Recompute(), fp.Recompute(fp.Autograd())]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
def test_g_is_evaluated_a_logarithmic_number_of_times(gradient, training):
    rows, logdet = 256, fp.PowerSeries(gradient=gradient)
    transform = fp.ResidualTransform(Counted(3), logdet=logdet, eval_logdet=logdet).train(training)
    before = transform.g.count
    _, ladj = transform(torch.randn(rows, 3), torch.randn(rows, 1))
    ladj.sum().backward()
    # Of the whole, and of half of the rows, again and again; Recompute does it in both passes.
    assert transform.g.count - before <= 2 * (2 + math.log2(rows))


def test_rows_that_converge_leave_at_no_evaluation_each():
    transform = fp.ResidualTransform(Counted(3), logdet=fp.PowerSeries(terms=fp.Converged(1e-12)))
    before = transform.g.count
    transform(torch.randn(256, 3), torch.randn(256, 1))
    assert transform.g.count - before <= 2 + math.log2(256)


@pytest.mark.parametrize("functional", [True, False])
@pytest.mark.parametrize("index", ["slice", "tensor", "mask"])
def test_products_and_their_gradients_are_those_of_the_rows_alone(index, functional, eps):
    """Down to one row, through many selections."""
    g, x, context = Counted(3), torch.randn(9, 3), torch.randn(9, 1)
    v, w = torch.randn(9, 3), torch.randn(9, 3)

    def chained(x):
        linear, rows, found = fp.Branch.of(g, context).linearize(x), torch.arange(9), []
        while len(rows) > 1:
            keep = torch.randperm(len(rows), generator=torch.Generator(rows.device).manual_seed(0))[:-1]
            if index == "slice":
                keep = slice(len(rows) - 1)
            elif index == "mask":
                keep = torch.arange(len(rows)) > 0
            linear, rows = linear.select(keep), rows[keep]
            found.append((rows, linear.y, linear.vjp(v[rows], create_graph=True)))
        return found

    def alone(x):
        branch = fp.Branch.of(g, context)
        linears = [(rows, branch.select(rows).linearize(x[rows])) for rows, *_ in chained(x)]
        return [(rows, linear.y, linear.vjp(v[rows], create_graph=True)) for rows, linear in linears]

    def loss(way, x):
        return sum((product * w[rows]).sum() for rows, _, product in way(x))

    if functional:
        gradients = [torch.func.grad(lambda x, way=way: loss(way, x))(x) for way in (chained, alone)]
    else:
        x.requires_grad_()
        sources = [x, *g.parameters()]
        gradients = [torch.autograd.grad(loss(way, x), sources, allow_unused=True) for way in (chained, alone)]
        for (_, *got), (_, *wanted) in zip(chained(x), alone(x), strict=True):
            torch.testing.assert_close(got, wanted, atol=20 * eps, rtol=0)
    torch.testing.assert_close(*gradients, atol=100 * eps, rtol=100 * eps)


@pytest.mark.parametrize("gradient", [fp.Neumann(), fp.Autograd()], ids=str)
def test_no_product_is_taken_of_subnormal_numbers(gradient):
    """CPUs are a hundred times slower with these, which nothing that is summed notices."""
    seen = []

    class Weak(nn.Module):
        def forward(self, x):
            y = 0.05 * x
            y.register_hook(lambda v: seen.append(v.detach().clone()))
            return y

    fp.lipschitz_bound.register(Weak, lambda module: fp.LipschitzBound(0.05))
    transform = fp.ResidualTransform(Weak(), logdet=fp.PowerSeries(terms=fp.Truncated(300), gradient=gradient))
    _, ladj = transform(torch.randn(4, 3))
    torch.testing.assert_close(ladj, torch.full((4,), 3 * math.log(1.05)))
    entries = torch.cat(seen).abs()
    assert len(seen) >= 300
    assert bool(((entries == 0) | (entries > 1e-26)).all())
