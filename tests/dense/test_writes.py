"""Whatever writes on the weights, the next pass knows: values of the log-det, and inverses."""

import copy

import pytest
import torch

import flowplug as fp


def fused_step(transform):
    optimizer = torch.optim.Adam(transform.parameters(), 0.5, fused=True)
    transform(torch.randn(4, 3))[0].square().sum().backward()
    optimizer.step()


def foreach_step(transform):
    optimizer = torch.optim.SGD(transform.parameters(), 0.1, foreach=True)
    transform(torch.randn(4, 3))[0].square().sum().backward()
    optimizer.step()


def from_vector(transform):
    torch.nn.utils.vector_to_parameters(3 * torch.randn(12), transform.parameters())


def through_numpy(transform):
    transform.weight.detach().cpu().numpy()[...] *= 2  # of the weights themselves on the CPU


def through_dlpack(transform):
    torch.from_dlpack(transform.weight.detach()).mul_(2)


def swap(transform):
    torch.utils.swap_tensors(transform.weight, torch.nn.Parameter(2 * transform.weight.detach()))


def assign(transform):
    transform.load_state_dict({"weight": 3 * torch.eye(3), "bias": torch.ones(3)}, assign=True)


def through_inference(transform):
    with torch.inference_mode():
        transform.weight.mul_(2)


def replace(transform):
    transform.weight = torch.nn.Parameter(2 * transform.weight.detach())


def share(transform):
    transform.share_memory()
    transform.weight.data[0] *= 2


WRITES = {
    "fused": fused_step,
    "foreach": foreach_step,
    "data": lambda t: t.weight.data.mul_(3),
    "data assigned": lambda t: setattr(t.weight, "data", 3 * t.weight.data),
    "one entry": lambda t: t.weight.data[1, 2].add_(0.01),
    "a view": lambda t: t.weight.detach()[0].mul_(2),
    "storage": lambda t: t.weight.untyped_storage().copy_((2 * t.weight.detach()).untyped_storage()),
    "vector_to_parameters": from_vector,
    "NumPy": through_numpy,
    "DLPack": through_dlpack,
    "swap_tensors": swap,
    "assign": assign,
    "inference_mode": through_inference,
    "another parameter": replace,
    "shared memory": share,
    "double": lambda t: t.double(),
    "float": lambda t: t.float(),
    "bfloat16 and back": lambda t: t.bfloat16().to(torch.get_default_dtype()),
}


def agrees(transform, x, grad):
    """Forward and inverse are those of the matrix as it is."""
    dtype = transform.weight.dtype
    tolerance = 1e4 * torch.finfo(dtype).eps
    x = x.to(dtype)
    with grad():
        y, ladj = transform(x)
        back, inverse_ladj = transform.inverse(y)
    wanted = torch.linalg.slogdet(transform.weight.detach()).logabsdet.expand(len(x))
    torch.testing.assert_close(y.detach(), (x @ transform.weight.T + transform.bias).detach(), atol=tolerance, rtol=0)
    torch.testing.assert_close(ladj.detach(), wanted, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(back.detach(), x, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(inverse_ladj.detach(), -wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("write", WRITES)
def test_exact_after_any_write(write, training, grad):
    if write in ("NumPy", "shared memory") and torch.empty(0).device.type != "cpu":
        pytest.skip("memory of the CPU")
    transform, x = fp.DenseTransform(3, activation=None).train(training), torch.randn(5, 3)
    agrees(transform, x, grad)
    agrees(transform, x, torch.no_grad)
    WRITES[write](transform)
    agrees(transform, x, grad)


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("write", ["data", "assign", "another parameter", "swap_tensors", "double", "float", "NumPy"])
def test_deferred_values_end_with_large_writes(write, grad):
    if write == "NumPy" and torch.empty(0).device.type != "cpu":
        pytest.skip("memory of the CPU")
    transform, x = fp.DenseTransform(3, activation=None, value=fp.Deferred(100)), torch.randn(5, 3)
    agrees(transform, x, grad)
    WRITES[write](transform)
    agrees(transform, x, grad)


NEAR = {
    "load_state_dict": lambda t: t.load_state_dict({k: 1.01 * v for k, v in t.state_dict().items()}),
    "to": lambda t: t.weight.data.mul_(1.01) is None or t.to(t.weight.device),
    "eval and train": lambda t: t.weight.data.mul_(1.01) is None or t.eval().train(),
    "another parameter": lambda t: setattr(t, "weight", torch.nn.Parameter(1.01 * t.weight.detach())),
}


@pytest.mark.parametrize("write", NEAR)
def test_deferred_values_do_not_outlast(write):
    """However little the weights move."""
    transform, x = fp.DenseTransform(3, activation=None, value=fp.Deferred(100)), torch.randn(5, 3)
    agrees(transform, x, torch.enable_grad)
    NEAR[write](transform)
    agrees(transform, x, torch.enable_grad)


def test_deferred_values_defer(monkeypatch):
    """Steps of an optimizer leave a value alone, and a copy starts without one."""
    calls, factor = [], torch.linalg.lu_factor_ex
    monkeypatch.setattr(torch.linalg, "lu_factor_ex", lambda w: calls.append(1) or factor(w))
    transform, x = fp.DenseTransform(20, value=fp.Deferred(10)), torch.randn(50, 20)
    optimizer = torch.optim.Adam(transform.parameters(), 1e-3)
    for _ in range(20):
        y, ladj = transform(x)
        optimizer.zero_grad()
        (y.square().sum(1) / 2 - ladj).mean().backward()
        optimizer.step()
    assert len(calls) == 2
    copy.deepcopy(transform)(x)
    assert len(calls) == 3


def test_swapped_weights_have_their_own_values(eps):
    transform, x = fp.DenseTransform(3, activation=None, value=fp.Deferred(100)), torch.randn(5, 3)
    near = {name: 1.1 * value.detach() for name, value in transform.named_parameters()}
    for training in (True, False):
        transform.train(training)
        for weights in (dict(transform.named_parameters()), near):
            ladj = torch.func.functional_call(transform, weights, (x,))[1].detach()
            wanted = torch.linalg.slogdet(weights["weight"].detach()).logabsdet
            torch.testing.assert_close(ladj, wanted.expand(5), atol=100 * eps, rtol=0)


@pytest.mark.parametrize("make", [fp.DenseTransform, fp.DenseConv1x1, fp.CircularConv2d])
@pytest.mark.parametrize("training", [True, False])
def test_weights_made_in_inference_mode(make, training):
    with torch.inference_mode():
        transform = make(3).train(training)
    x = torch.randn(4, *([3] if make is fp.DenseTransform else [3, 4, 5]))
    for grad in (torch.inference_mode, torch.no_grad):
        with grad():
            y, ladj = transform(x)
            back, inverse_ladj = transform.inverse(y)
        torch.testing.assert_close(back.detach(), x, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(inverse_ladj.detach(), -ladj.detach(), atol=1e-4, rtol=1e-4)
    with pytest.raises(fp.DtypeError, match="made inside"):
        transform(x)
