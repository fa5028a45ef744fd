"""The derivative of a solution: by the implicit function theorem, once."""

import math

import pytest
import torch

import flowplug as fp
from cases import residual
from helpers import SOLVERS


def test_step_limit_in_the_backward_pass():
    limits = iter([10_000, 1])
    transform = residual(solver=lambda *problem: fp.FixedPoint(max_steps=next(limits))(*problem))
    x = transform.inverse(torch.randn(5, 3))[0]
    with pytest.raises(fp.NotConverged, match="in 1 steps"):
        x.sum().backward()


class TestDerivatives:
    """Finite differences need float64, whatever the dtype of the suite."""

    @pytest.fixture(params=[(fp.InfNorm(), solver) for solver in SOLVERS] + [(fp.Gram(), fp.Anderson())], ids=str)
    def transform(self, request):
        norm, solver = request.param
        return residual(context_features=2, norm=norm, solver=solver).double()

    @pytest.mark.slow
    def test_gradcheck_of_both_outputs(self, transform):
        y, context = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
        # Weights that are close to 0 initially move away from there, where the norm has a kink.
        parameters = [(p + 1e-3 * p.sign()).detach().requires_grad_() for p in transform.parameters()]
        names = [name for name, _ in transform.named_parameters()]

        def inverse(y, context, *values):
            swapped = dict(zip(names, values, strict=True))
            return torch.func.functional_call(
                fp.InverseTransform(transform), {f"transform.{k}": v for k, v in swapped.items()}, (y, context)
            )

        assert torch.autograd.gradcheck(inverse, (y.requires_grad_(), context.requires_grad_(), *parameters))

    def test_equals_the_unrolled_iteration(self, transform):
        y, context = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
        x = transform.inverse(y, context)[0]
        unrolled = y
        for _ in range(300):
            unrolled = y - transform.g(unrolled, context)
        weights = torch.randn_like(x)
        leaves = list(transform.parameters())
        implicit, explicit = (torch.autograd.grad((weights * z).sum(), leaves) for z in (x, unrolled))
        torch.testing.assert_close(implicit, explicit, atol=1e-12, rtol=1e-9)

    def test_tolerance_is_relative_to_the_gradient(self, transform):
        loose = fp.ResidualTransform(transform.g, solver=fp.FixedPoint(tol=1e-3))
        y, context = torch.randn(3, 3, dtype=torch.float64, requires_grad=True), torch.randn(3, 2, dtype=torch.float64)
        for scale in (1e-9, 1e9):
            (a,) = torch.autograd.grad(scale * loose.inverse(y, context)[0].sum(), y)
            (b,) = torch.autograd.grad(scale * transform.inverse(y, context)[0].sum(), y)
            assert float((a - b).abs().max()) <= 0.01 * scale

    @pytest.mark.parametrize(
        ("norm", "dual"), [(None, None), (1.0, math.inf), (2.0, 2.0), (4.0, 4 / 3), (math.inf, 1.0)]
    )
    def test_adjoint_contracts_in_the_dual_norm(self, norm, dual):
        assert fp.LipschitzBound(0.9, norm).dual() == fp.LipschitzBound(0.9, dual)
        if norm in (1.0, 2.0, math.inf):
            matrix = torch.randn(4, 4)
            a, b = torch.linalg.matrix_norm(matrix, norm), torch.linalg.matrix_norm(matrix.T, dual)
            torch.testing.assert_close(a, b)

    def test_a_second_derivative_raises(self):
        transform, y = residual(), torch.randn(3, 3, requires_grad=True)
        x = transform.inverse(y)[0]
        (gradient,) = torch.autograd.grad(x.sum(), y, create_graph=True)
        with pytest.raises(fp.SecondDerivativeError, match="differentiable once"):
            torch.autograd.grad(gradient.sum(), y)

    def test_memory_does_not_grow_with_the_iterations(self):
        sizes = set()
        for tol in (1e-1, 1e-4):
            x = residual(solver=fp.FixedPoint(tol=tol)).inverse(torch.randn(3, 3))[0]
            seen, stack = set(), [x.grad_fn]
            while stack:
                node = stack.pop()
                if node is not None and node not in seen:
                    seen.add(node)
                    stack += [next_node for next_node, _ in node.next_functions]
            sizes.add(len(seen))
        assert len(sizes) == 1

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_gradients_that_are_not_finite_pass_through_their_own_row(self, value):
        y = torch.randn(3, 3, requires_grad=True)
        x = residual(bound=0.9).inverse(y)[0]
        weights = torch.ones(3, 3)
        weights[1, 0] = value
        (gradient,) = torch.autograd.grad(x, y, weights)
        assert gradient.isfinite().all(1).tolist() == [True, False, True]

    def test_frozen_parameters(self):
        transform = residual().requires_grad_(requires_grad=False)
        y = torch.randn(3, 3, requires_grad=True)
        transform.inverse(y)[0].sum().backward()
        assert y.grad is not None
        assert not transform.inverse(y.detach())[0].requires_grad
