"""The matrix whose determinant is that of a perceptron's, at its narrowest layer: value, derivatives, training."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import flowplug as fp

NETWORKS = [
    *[(6, (3,)), (6, (4, 3)), (6, (3, 4)), (6, (5, 3, 4)), (6, (2, 5, 4))],
    *[(3, (4,)), (4, (4, 3, 5)), (4, (4,)), (4, (6, 4)), (5, ())],
]


def oracle(g, x, context=None):
    jacobian = fp.Branch.of(g, context).jacobian(x)[1]
    return torch.linalg.slogdet(torch.eye(jacobian.shape[-1]) + jacobian).logabsdet


@pytest.mark.parametrize("activation", [fp.SineHuber, fp.LipSwish, nn.Tanh])
@pytest.mark.parametrize(("features", "hidden"), NETWORKS, ids=str)
def test_log_dets_and_their_derivatives_are_those_of_the_jacobian(features, hidden, activation, eps):
    g = fp.LipschitzMLP(features, hidden, activation=activation, context_features=2)
    x, context, weights = torch.randn(4, features, requires_grad=True), torch.randn(4, 2), torch.randn(4)
    branch, narrow = fp.Branch.of(g, context), min(features, *hidden) if hidden else features
    y, core = branch.core(x)
    assert core.shape == (4, narrow, narrow)
    assert branch.core_size((features,)) == narrow
    torch.testing.assert_close(y, branch(x), atol=10 * eps, rtol=10 * eps)
    sources = [x, *g.parameters()]
    options = {"allow_unused": True, "materialize_grads": True, "create_graph": True}
    ladj = fp.ResidualTransform(g, logdet=fp.ExactLogDet())(x, context)[1]
    wanted = oracle(g, x, context)
    torch.testing.assert_close(ladj, wanted, atol=1e3 * eps, rtol=0)
    first, others = (torch.autograd.grad(weights @ part, sources, **options) for part in (ladj, wanted))
    torch.testing.assert_close(first, others, atol=1e4 * eps, rtol=1e4 * eps)
    if hidden:
        second, others = (
            torch.autograd.grad(sum(p.square().sum() for p in part), sources, **options) for part in (first, others)
        )
        torch.testing.assert_close(second, others, atol=1e5 * eps, rtol=1e5 * eps)


def test_of_equal_widths_a_hidden_layer_is_taken_as_no_row_needs_a_product_of_its_own():
    core = fp.Branch.of(fp.LipschitzMLP(5, (5,)), None).core(torch.randn(2, 5))[1]
    ratio = core[0] / core[1]
    torch.testing.assert_close(ratio, ratio[:, :1].expand(5, 5))


def test_other_branches_have_their_jacobian():
    for g, event in ((fp.LipschitzMLP(6, (4,), activation=fp.MaxMin), (6,)), (fp.LipschitzCNN(1, (2,)), (1, 3, 3))):
        branch, x = fp.Branch.of(g, None), torch.randn(2, *event)
        assert torch.equal(branch.core(x)[1], branch.jacobian(x)[1])
        assert branch.core_size(event) == math.prod(event)


def test_a_jacobian_of_ones_own_is_not_passed_over():
    class Half(fp.Branch):
        def jacobian(self, x):
            return x / 2, (torch.eye(x.shape[1]) / 2).expand(len(x), -1, -1)

    ladj = fp.ExactLogDet()(Half(nn.Identity(), None), torch.randn(3, 2), fp.Noise())[1]
    torch.testing.assert_close(ladj, torch.full((3,), 2 * math.log(1.5)))


def test_no_matrix_is_as_large_as_the_events(monkeypatch):
    sizes, logabsdet = [], torch.linalg.slogdet
    monkeypatch.setattr(torch.linalg, "slogdet", lambda m: sizes.append(m.shape) or logabsdet(m))
    fp.ResidualTransform(fp.LipschitzMLP(300, (8, 64))).train()(torch.randn(5, 300))
    assert sizes == [(5, 8, 8)]


class Largest(TorchDispatchMode):
    """The largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.size = max(self.size, made.numel())
        return made


@pytest.mark.parametrize("rows", [1, 3, 39, 40, 200])
def test_no_tensor_is_larger_than_jacobians_or_weights_of_rows(rows):
    g = fp.LipschitzMLP(40, (60,))
    x = torch.randn(rows, 40)
    with Largest() as largest:
        _, jacobian = fp.Branch.of(g, None).jacobian(x)
    assert largest.size <= rows * 40 * 60
    wanted = torch.func.vmap(torch.func.jacrev(lambda row: g(row[None])[0]))(x)
    torch.testing.assert_close(jacobian, wanted)


@pytest.mark.usefixtures("users_defaults")
def test_rows_by_torch_func_and_half_precision():
    transform, x = fp.ResidualTransform(fp.LipschitzMLP(20, (4,)), logdet=fp.ExactLogDet()), torch.randn(3, 20)
    ladj = transform(x)[1]
    single = torch.func.vmap(lambda row: transform(row.unsqueeze(0))[1].squeeze(0))(x)
    torch.testing.assert_close(single, ladj)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(transform(x)[1], ladj, atol=0.05, rtol=0.05)
