"""Gradients without a graph: the same numbers, whatever is recomputed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import flowplug as fp
from cases import small_mlp
from helpers import BRANCHES, UNTRAINED, Matrix, Scale, assert_all_close, event, sequential, value_and_gradients


@pytest.mark.parametrize("make", [fp.Krylov, fp.PowerSeries])
@pytest.mark.parametrize("name", [*BRANCHES, "context"])
def test_equals_neumann(name, make, eps):
    g = small_mlp(context_features=2) if name == "context" else BRANCHES[name]()
    x, context = torch.randn(6, *event(g)), torch.randn(6, 2) if name == "context" else None
    logdet = make(terms=fp.Roulette(fp.Certified()), probes=fp.Rademacher(2))
    results = [value_and_gradients(g, replace(logdet, gradient=h), x, context) for h in (fp.Neumann(), fp.Recompute())]
    scale = 1 + max(float(part.abs().max()) for part in results[0])
    assert_all_close(results[1], results[0], 200 * eps * scale)


# In torch 2.4 the checkpoint itself calls torch.cpu.amp.autocast, which torch 2.4 deprecates.
@pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.autocast:FutureWarning")
def test_works_inside_checkpointing():
    """Which lets every saved tensor be unpacked once."""
    g, x, results = small_mlp(), torch.randn(6, 3, requires_grad=True), []
    transform = fp.ResidualTransform(g, logdet=fp.Krylov(terms=fp.Truncated(2), gradient=fp.Recompute()))
    for call in (transform, lambda x: torch.utils.checkpoint.checkpoint(transform, x, use_reentrant=False)):
        torch.manual_seed(0)
        results.append(torch.autograd.grad(call(x)[1].sum(), [x, *g.parameters()], allow_unused=True))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("gradient", [3, fp.Neumann, lambda *arguments: None])
def test_what_is_no_gradient_is_refused(gradient):
    for make in (fp.Krylov, fp.PowerSeries, fp.Recompute):
        with pytest.raises(TypeError, match=rf"{make.__name__}\(gradient=\.\.\.\) must be a Gradient"):
            make(gradient=gradient)


@pytest.mark.parametrize("make", [fp.Krylov, fp.PowerSeries])
def test_what_is_kept_does_not_grow_with_the_terms(make):
    kept = {}
    for gradient in (fp.Recompute(), fp.Neumann(), fp.Autograd()):
        if make is fp.Krylov and gradient == fp.Autograd():
            continue
        for n in (2, 40):
            size = 0

            def pack(tensor):
                nonlocal size
                size += tensor.numel()
                return tensor

            transform = fp.ResidualTransform(small_mlp(), logdet=make(terms=fp.Truncated(n), gradient=gradient))
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                transform(torch.randn(50, 3, requires_grad=True))
            kept[gradient, n] = size
    assert kept[fp.Recompute(), 2] == kept[fp.Recompute(), 40] < kept[fp.Neumann(), 40] / 4
    if make is fp.PowerSeries:
        assert kept[fp.Autograd(), 40] > 5 * kept[fp.Autograd(), 2]


def test_functional_call(eps):
    """The parameters of the call are used and get the gradient, also after it is over."""
    transform = fp.ResidualTransform(sequential(), logdet=fp.Krylov(gradient=fp.Recompute()))
    x = torch.randn(6, 3)
    other = {name: (0.5 * p.detach()).requires_grad_() for name, p in transform.named_parameters()}
    with fp.fixed_noise(0):
        ladj = torch.func.functional_call(transform, other, (x,))[1]
        gradients = torch.autograd.grad(ladj.sum(), list(other.values()), materialize_grads=True, allow_unused=True)
        for name, p in transform.named_parameters():
            p.data.copy_(other[name].detach())
        transform.logdet = fp.Krylov()
        wanted = torch.autograd.grad(
            transform(x)[1].sum(), list(transform.parameters()), materialize_grads=True, allow_unused=True
        )
    assert_all_close(gradients, wanted, 200 * eps)


def test_parameters_changed_before_backward_are_noticed():
    transform = fp.ResidualTransform(small_mlp(), logdet=fp.Krylov(gradient=fp.Recompute()))
    loss = transform(torch.randn(6, 3))[1].sum()
    with torch.no_grad():
        for p in transform.parameters():
            p.add_(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.usefixtures("users_defaults")
def test_autocast():
    x, results = torch.randn(64, 3), []
    g = fp.LipschitzMLP(3, (32,))
    for gradient in (fp.Neumann(), fp.Recompute()):
        transform = fp.ResidualTransform(g, logdet=fp.Krylov(gradient=gradient))
        transform.noise_seed.fill_(0)
        with torch.autocast("cpu", dtype=torch.bfloat16), fp.fixed_noise(0):
            ladj = transform(x)[1]
        assert ladj.dtype == torch.float32
        results.append(torch.autograd.grad(ladj.sum(), list(g.layers.parameters()), allow_unused=True))
    assert_all_close(results[1][:1], results[0][:1], 1e-5)


def test_random_modules_are_refused():
    class Noisy(Matrix):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x))

    fp.lipschitz_bound.register(Noisy, lambda module: fp.LipschitzBound(0.5, limit=UNTRAINED))
    transform = fp.ResidualTransform(Noisy(0.2 * torch.eye(3)), logdet=fp.Krylov(gradient=fp.Recompute()))
    with pytest.raises(fp.LipschitzError, match=r"g = Noisy draws random numbers"):
        transform(torch.randn(4, 3))
    with pytest.raises(fp.LipschitzError, match="Dropout"):
        fp.ResidualTransform(nn.Sequential(Scale(0.5), nn.Dropout()))


def test_second_derivatives_are_refused():
    transform = fp.ResidualTransform(small_mlp(), logdet=fp.Krylov(gradient=fp.Recompute()))
    x = torch.randn(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(transform(x)[1].sum(), x, create_graph=True)
    with pytest.raises(fp.SecondDerivativeError, match=r"Recompute is differentiable once: .*ExactLogDet\(\)"):
        torch.autograd.grad(gradient.sum(), x)


def test_frozen_affine_branch():
    """Its log-det is a constant, and the path through y is all that is left."""
    g = fp.LipschitzMLP(3, ()).requires_grad_(requires_grad=False)
    x = torch.randn(4, 3, requires_grad=True)
    results = []
    for logdet in (fp.Krylov(gradient=fp.Recompute()), fp.ExactLogDet()):
        y, ladj = fp.ResidualTransform(g, logdet=logdet)(x)
        results += torch.autograd.grad(y.square().sum() + ladj.sum(), x)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("terms", [fp.Truncated(5), fp.Converged(1e-4), fp.Roulette(fp.Certified(), exact=1)])
@pytest.mark.parametrize("control", [None, fp.ExactTrace()])
@pytest.mark.parametrize("inner", [fp.Autograd(), fp.Neumann(), fp.Recompute()])
def test_repeats_any_gradient(inner, control, terms, eps):
    """The same probes and terms, so the same numbers."""
    g, results = small_mlp(context_features=2), []
    x, context = torch.randn(6, 3, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    for gradient in (inner, fp.Recompute(inner)):
        logdet = fp.PowerSeries(terms=terms, probes=fp.Rademacher(2), gradient=gradient, control=control)
        with fp.fixed_noise(0):
            transform = fp.ResidualTransform(g, logdet=logdet)
            transform.noise_seed.zero_()
            y, ladj = transform(x, context)
        loss = y.square().sum() + torch.linspace(0, 1, 6) @ ladj
        results.append([y, ladj, *torch.autograd.grad(loss, [x, context, *g.parameters()])])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, atol=100 * eps, rtol=100 * eps)
