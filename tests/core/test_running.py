"""Ways of running that changed numbers once, or failed: autocast, inference mode, torch.func, half precision."""

import pytest
import torch
from torch import nn

import flowplug as fp
from cases import residual, sequential, small_mlp

MAKE = {
    "residual": residual,
    "wide": lambda: fp.ResidualTransform(fp.LipschitzMLP(3, (64,))),
    "sequential": sequential,
    "stack": lambda: fp.ResidualStack(3, transforms=2, hidden_features=(8,)),
    "dense": lambda: fp.DenseTransform(3),
    "swapped": lambda: fp.InverseTransform(residual()),
}


def made(name, *, training=False):
    transform = MAKE[name]().train()
    transform(torch.randn(200, 3))
    return transform.train(training)


class TestAutocast:
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("name", MAKE)
    def test_an_inverse_is_the_one_without(self, users_defaults, name, training):
        del users_defaults
        transform, results = made(name, training=training), []
        for enabled in (False, True):
            y = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                x, ladj = transform.inverse(y)
            gradients = torch.autograd.grad(
                x.square().sum() + ladj.sum(), [y, *transform.parameters()], allow_unused=True
            )
            results.append([x, ladj, *(g for g in gradients if g is not None)])
        for got, wanted in zip(*results, strict=True):
            assert got.dtype == wanted.dtype
            assert torch.equal(got, wanted)

    def test_an_input_in_half_precision_is_taken_as_what_the_transform_has(self, users_defaults):
        del users_defaults
        transform, y = made("residual"), torch.randn(4, 3).bfloat16()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            x, _ = transform.inverse(y)
        torch.testing.assert_close(transform(x)[0], y.float(), atol=1e-5, rtol=1e-5)

    def test_the_backward_pass_of_an_inverse_may_run_inside(self, users_defaults):
        del users_defaults
        transform, y = made("residual"), torch.randn(4, 3, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            (inside,) = torch.autograd.grad(transform.inverse(y)[0].sum(), y)
        (outside,) = torch.autograd.grad(transform.inverse(y)[0].sum(), y)
        torch.testing.assert_close(inside, outside, atol=0, rtol=1e-5)


class TestInferenceMode:
    @pytest.mark.parametrize("name", MAKE)
    def test_weights_made_inside(self, name):
        with torch.inference_mode():
            transform, x = MAKE[name]().eval(), torch.randn(4, 3)
            y, ladj = transform(x)
            back, other = transform.inverse(y)
        outside = [tensor.clone() for tensor in (x, y, ladj)]
        eps = torch.finfo(outside[0].dtype).eps
        torch.testing.assert_close(back.clone(), outside[0], atol=1e3 * eps, rtol=1e3 * eps)
        torch.testing.assert_close(-other.clone(), outside[2], atol=1e3 * eps, rtol=1e3 * eps)
        with torch.no_grad():
            torch.testing.assert_close(transform(outside[0])[0], outside[1])
        with pytest.raises(fp.DtypeError, match="make it outside, or call it"):
            transform(outside[0])

    def test_weights_made_outside_serve_on(self):
        transform, x = made("stack"), torch.randn(4, 3)
        wanted = transform(x)[1].detach()
        with torch.inference_mode():
            torch.testing.assert_close(transform(x)[1].clone(), wanted)
            transform.inverse(x)
        transform.train()(x)[1].sum().backward()


class TestFunctionTransforms:
    """Exact log-dets, of any network."""

    @pytest.fixture(params=[small_mlp, lambda: small_mlp(activation=nn.Tanh), lambda: MAKE["sequential"]().g])
    def transform(self, request):
        return fp.ResidualTransform(request.param(), logdet=fp.ExactLogDet()).eval()

    def test_vmap(self, transform):
        x = torch.randn(5, 3)
        for got, wanted in zip(torch.func.vmap(transform)(x), transform(x), strict=True):
            torch.testing.assert_close(got, wanted)

    def test_gradients_of_rows(self, transform):
        x, weights = torch.randn(5, 3), dict(transform.named_parameters())

        def loss(weights, row):
            y, ladj = torch.func.functional_call(transform, weights, (row,))
            return y.square().sum() - ladj

        rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
        y, ladj = transform(x)
        whole = torch.autograd.grad(y.square().sum() - ladj.sum(), weights.values())
        for name, wanted in zip(weights, whole, strict=True):
            torch.testing.assert_close(rows[name].sum(0), wanted)

    def test_jacobian(self, transform):
        x = torch.randn(3)
        got = torch.func.jacrev(lambda v: transform(v)[0])(x)
        torch.testing.assert_close(got, torch.autograd.functional.jacobian(lambda v: transform(v)[0], x))

    def test_hessian(self, transform):
        x = torch.randn(3)
        got = torch.func.hessian(lambda v: transform(v)[1])(x)
        wanted = torch.autograd.functional.hessian(lambda v: transform(v)[1], x)
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)

    def test_hessians_of_rows(self, transform):
        """Which torch's own log-determinant gets wrong, in whatever order the modes are nested."""
        x = torch.randn(4, 3, dtype=torch.float64)
        transform.double()
        wanted = torch.stack([torch.autograd.functional.hessian(lambda v: transform(v)[1], row) for row in x])
        forward, reverse = torch.func.jacfwd, torch.func.jacrev
        for outer, inner in ((forward, reverse), (reverse, reverse), (forward, forward), (reverse, forward)):
            got = torch.func.vmap(outer(inner(lambda v: transform(v)[1])))(x)
            torch.testing.assert_close(got, wanted, atol=1e-8, rtol=1e-8)

    def test_the_default_is_exact_inside_vmap(self):
        transform, x = fp.ResidualTransform(fp.LipschitzMLP(8)).train(), torch.randn(5, 8)
        mapped = torch.func.vmap(lambda v: transform(v)[1])(x)
        transform.logdet = fp.ExactLogDet()
        torch.testing.assert_close(mapped, transform(x)[1])

    def test_gradient_through_an_inverse(self):
        transform, y = residual(), torch.randn(4, 3)
        got = torch.func.grad(lambda v: transform.inverse(v)[0].square().sum())(y)
        at = y.clone().requires_grad_()
        torch.testing.assert_close(got, *torch.autograd.grad(transform.inverse(at)[0].square().sum(), at))

    @pytest.mark.parametrize("logdet", [fp.Krylov(), fp.PowerSeries(), fp.Krylov(gradient=fp.Recompute())])
    def test_gradient_of_an_estimate(self, logdet):
        transform, x = residual(logdet=logdet, bound=0.7), torch.randn(4, 3)
        weights = dict(transform.named_parameters())

        def loss(weights):
            return torch.func.functional_call(transform, weights, (x,))[1].sum()

        with fp.fixed_noise(0):
            got = torch.func.grad(loss)(weights)
            leaves = list(weights.values())
            wanted = torch.autograd.grad(transform(x)[1].sum(), leaves, allow_unused=True, materialize_grads=True)
        for name, part in zip(weights, wanted, strict=True):
            torch.testing.assert_close(got[name], part)

    def test_what_cannot_be_mapped_is_refused_by_name(self):
        x = torch.randn(4, 3)
        with pytest.raises(fp.VmapError, match=r"pass logdet=ExactLogDet\(\)"):
            torch.func.vmap(residual(logdet=fp.Krylov(), bound=0.7))(x)
        with pytest.raises(fp.VmapError, match="call it on the whole batch"):
            torch.func.vmap(residual().inverse)(x)

    def test_an_inverse_has_no_forward_mode(self):
        with pytest.raises(fp.InverseNotAvailable, match="no forward-mode derivative"):
            torch.func.jvp(residual(activation=nn.Tanh).inverse, (torch.randn(4, 3),), (torch.randn(4, 3),))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("logdet", [None, fp.ExactLogDet(), fp.Krylov(), fp.PowerSeries()])
def test_a_model_in_half_precision(users_defaults, dtype, logdet):
    """It trains, evaluates and inverts, with numbers near those of single precision."""
    del users_defaults
    transform = fp.ResidualTransform(fp.LipschitzMLP(8, bound=0.7), logdet=logdet, eval_logdet=logdet)
    x = torch.randn(64, 8)
    half = fp.ResidualTransform(fp.LipschitzMLP(8, bound=0.7), logdet=logdet, eval_logdet=logdet)
    half.load_state_dict(transform.state_dict())
    half.to(dtype)
    (half(x.to(dtype))[1].sum()).backward()
    y, ladj = transform.eval()(x)
    got, estimate = half.eval()(x.to(dtype))
    assert (got.dtype, estimate.dtype) == (dtype, dtype)
    torch.testing.assert_close(got.float(), y, atol=0.1, rtol=0.05)
    torch.testing.assert_close(estimate.float(), ladj, atol=0.3, rtol=0.1)
    back, _ = half.inverse(got)
    torch.testing.assert_close(back.float(), x, atol=0.3, rtol=0.1)


def test_a_transform_of_buffers_alone_checks_its_dtype_too():
    with pytest.raises(fp.DtypeError, match="convert one of them"):
        fp.Whitening(3).double()(torch.randn(4, 3).float())
