"""Dense transforms in every way of running: torch.func, anomaly mode, checkpointing, autocast, half precision."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import flowplug as fp

GRADIENTS = [fp.Relative(), fp.TransposedRelative(), fp.Euclidean()]
MAKES = {
    "DenseTransform": (lambda **k: fp.DenseTransform(3, **k), (3,)),
    "bare DenseTransform": (lambda **k: fp.DenseTransform(3, activation=None, bias=False, **k), (3,)),
    "Deferred": (lambda **k: fp.DenseTransform(3, value=fp.Deferred(3), **k), (3,)),
    "DenseConv1x1": (lambda **k: fp.DenseConv1x1(2, **k), (2, 3, 2)),
    "CircularConv2d": (lambda **k: fp.CircularConv2d(2, activation=fp.TanhLinear(), **k), (2, 3, 4)),
    "bare CircularConv2d": (lambda **k: fp.CircularConv2d(2, **k), (2, 3, 4)),
}


@pytest.fixture(params=MAKES)
def case(request):
    make, event = MAKES[request.param]
    return make, torch.randn(4, *event)


@pytest.fixture(params=[True, False], ids=["train", "eval"])
def training(request):
    return request.param


def random(transform):
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return transform


def directions_of(transform):
    return [transform, transform.inverse]


def loss_of(transform, x):
    y, ladj = transform(x)
    return (y.sin().flatten(1).sum(1) - ladj).sum()


def close(got, wanted, eps, units=1e5):
    torch.testing.assert_close(got, wanted, atol=units * eps, rtol=units * eps)


class TestFunc:
    def test_vmap_over_inputs(self, case, training, eps):
        make, x = case
        for direction in directions_of(random(make()).train(training)):
            for got, wanted in zip(torch.func.vmap(direction)(x), direction(x), strict=True):
                close(got, wanted, eps)
            twice = torch.func.vmap(torch.func.vmap(direction))(x[None])
            for got, wanted in zip(twice, direction(x), strict=True):
                close(got[0], wanted, eps)

    def test_derivatives_by_inputs(self, case, training, eps):
        """Both modes, and the Hessian by either over the other, against plain autograd."""
        make, x = case
        for direction in directions_of(random(make()).train(training)):

            def scalar(x, direction=direction):
                y, ladj = direction(x)
                return y.sin().sum() + 2 * ladj

            plain = torch.autograd.functional.jacobian(scalar, x[0])
            for way in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
                close(way(scalar)(x[0]), plain, eps)
            close(torch.func.vmap(torch.func.grad(scalar))(x)[0], plain, eps)
            hessian = torch.autograd.functional.hessian(scalar, x[0])
            close(torch.func.hessian(scalar)(x[0]), hessian, eps)
            close(torch.func.jacrev(torch.func.jacrev(scalar))(x[0]), hessian, eps)

    @pytest.mark.parametrize("gradient", GRADIENTS)
    def test_directions_of_parameters(self, case, training, gradient, eps):
        make, x = case
        transform = random(make(gradient=gradient)).train(training)
        weights = {name: value.detach() for name, value in transform.named_parameters()}

        def loss(weights, x):
            y, ladj = torch.func.functional_call(transform, weights, (x,))
            return (y.sin().flatten(x.dim() - transform.event_dim).sum(-1) - ladj).sum()

        found = torch.func.grad(loss)(weights, x)
        loss_of(transform, x).backward()
        for name, parameter in transform.named_parameters():
            close(found[name], parameter.grad, eps)
        rows = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
        for name, parameter in transform.named_parameters():
            close(rows[name].sum(0), parameter.grad, eps)
        outputs = torch.func.jacrev(lambda w: torch.func.functional_call(transform, w, (x,))[1])(weights)
        for name, parameter in transform.named_parameters():
            transform.zero_grad()
            transform(x)[1][1].backward()
            close(outputs[name][1], parameter.grad, eps)

    @pytest.mark.parametrize("gradient", GRADIENTS)
    def test_ensembles(self, case, training, gradient, eps):
        """Members at once, forward, inverse and directions, are the members one by one."""
        make, x = case
        members = [random(make(gradient=gradient)).train(training) for _ in range(3)]
        weights, _ = torch.func.stack_module_state(members)
        base = copy.deepcopy(members[0])

        def forward(weights, x):
            return torch.func.functional_call(base, weights, (x,))

        def backward(weights, x):
            named = {f"transform.{name}": value for name, value in weights.items()}
            return torch.func.functional_call(fp.InverseTransform(base), named, (x,))

        for call, way in ((forward, lambda m: m), (backward, lambda m: m.inverse)):
            for i, found in enumerate(zip(*torch.func.vmap(call, (0, None))(weights, x), strict=True)):
                for got, wanted in zip(found, way(members[i])(x), strict=True):
                    close(got, wanted, eps)
        directions = torch.func.vmap(torch.func.grad(lambda w, x: loss_of(lambda x: forward(w, x), x)), (0, None))
        directions = directions(weights, x)
        for i, member in enumerate(members):
            loss_of(member, x).backward()
            for name, parameter in member.named_parameters():
                close(directions[name][i], parameter.grad, eps)
        # By plain autograd through the members.
        y, ladj = torch.func.vmap(forward, (0, None))(weights, x)
        (y.sin().sum() - ladj.sum()).backward()
        for i, member in enumerate(members):
            for name, parameter in member.named_parameters():
                close(weights[name].grad[i], parameter.grad, eps)

    def test_ordinary_derivatives_through_the_inverse(self, case, eps):
        """By the weights, against finite differences: both modes."""
        make, x = case
        transform = random(make()).double().eval()
        weight = transform.weight.detach().clone()

        def inverse(weight, y):
            names = {"transform.weight": weight}
            return torch.func.functional_call(fp.InverseTransform(transform), names, (y,))

        inputs = (weight.requires_grad_(), x[:2].double().requires_grad_())
        assert torch.autograd.gradcheck(inverse, inputs, check_forward_ad=isinstance(transform, fp.DenseTransform))
        assert torch.autograd.gradgradcheck(inverse, inputs)
        for got, wanted in zip(torch.func.jacrev(inverse)(*inputs), torch.func.jacfwd(inverse)(*inputs), strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-8, rtol=1e-8)

    def test_ordinary_derivatives_in_forward_mode(self, case):
        make, x = case
        transform = random(make()).double()
        names = [name for name, _ in transform.named_parameters()]
        weights = tuple(value.detach().clone() for value in transform.parameters())

        def call(*weights):
            y, ladj = torch.func.functional_call(transform, dict(zip(names, weights, strict=True)), (x.double(),))
            return y.sin().flatten(1).sum(1) + ladj

        directions = tuple(map(torch.randn_like, weights))
        found = torch.func.jvp(call, weights, directions)[1]
        step = 1e-6
        ends = [call(*(w + s * d for w, d in zip(weights, directions, strict=True))) for s in (step, -step)]
        torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * step), atol=1e-6, rtol=1e-6)

    def test_second_derivatives_are_refused_when_taken(self, case):
        """Directions may be asked for with a graph; they are differentiated by nothing."""
        make, x = case
        transform = random(make())
        weights = {name: value.detach() for name, value in transform.named_parameters()}

        def loss(weights, x):
            y, ladj = torch.func.functional_call(transform, weights, (x,))
            return y.square().sum() - ladj.sum()

        grad = torch.func.grad(loss)
        grad(weights, x)
        for second in (
            lambda: torch.func.grad(lambda w: grad(w, x)["weight"].sum())(weights),
            lambda: torch.func.grad(lambda x: grad(weights, x)["weight"].square().sum())(x),
            lambda: torch.func.jacfwd(lambda w: grad(w, x)["weight"])(weights),
            lambda: torch.func.jacfwd(lambda x: grad(weights, x)["weight"])(x),
        ):
            with pytest.raises(fp.SecondDerivativeError, match="is differentiable once in W and b"):
                second()

    def test_a_loss_of_the_score_does_not_train(self):
        """A score by torch.func, its loss by autograd."""
        transform, x = fp.DenseTransform(3), torch.randn(4, 3)
        score = torch.func.vmap(torch.func.grad(lambda x: transform(x)[1] - transform(x)[0].square().sum() / 2))(x)
        with pytest.raises(fp.SecondDerivativeError, match="DenseTransform is differentiable once in W and b"):
            score.square().sum().backward()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_batched_gradients(case, gradient, eps):
    """Autograd's own vectorized Jacobian."""
    make, x = case
    transform = random(make(gradient=gradient))
    for i in range(2):
        output = transform(x)[i]
        ones = torch.ones(3, *output.shape)
        (found,) = torch.autograd.grad(output, transform.weight, ones, is_grads_batched=True)
        (wanted,) = torch.autograd.grad(transform(x)[i].sum(), transform.weight)
        close(found[1], wanted, eps)


def test_anomaly_mode_and_checkpointing(case, training, eps):
    make, x = case
    transform, found = random(make()).train(training), []
    for way in ("plain", "anomaly", "reentrant", "checkpoint"):
        transform.zero_grad()
        inputs = x.clone().requires_grad_()
        with torch.autograd.set_detect_anomaly(way == "anomaly"):
            if way in ("plain", "anomaly"):
                y, ladj = transform(inputs)
            else:
                y, ladj = checkpoint(transform, inputs, use_reentrant=way == "reentrant")
            (y.sin().sum() - ladj.sum()).backward()
        found.append([inputs.grad, *(parameter.grad.clone() for parameter in transform.parameters())])
    for other in found[1:]:
        for got, wanted in zip(other, found[0], strict=True):
            close(got, wanted, eps)


def test_log_dets_are_entries_of_their_own(case, training):
    make, x = case
    transform = make().train(training)
    for grad in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        for direction in directions_of(transform):
            with grad():
                ladj, again = direction(x)[1], direction(x)[1].clone()
                with torch.no_grad():
                    ladj[0] += 1
            assert ladj.stride() == (1,)
            assert torch.equal(ladj.detach()[1:], again.detach()[1:])
    with torch.no_grad():
        transform(x)[1].add_(1)
        assert torch.equal(transform(x)[1], transform(x)[1])


@pytest.mark.usefixtures("users_defaults")
def test_the_inverse_under_autocast(case, training):
    """Values, log-dets and derivatives lose no digit, whether the backward pass is inside or not."""
    make, event = case
    transform, x = random(make()).float().train(training), torch.randn(4, *event.shape[1:])
    found = []
    for inside in (None, False, True):
        transform.zero_grad()
        y = x.clone().requires_grad_()
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=inside is not None):
            back, ladj = transform.inverse(y)
            loss = back.square().sum() + ladj.sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        found.append([back, ladj, y.grad, *(parameter.grad for parameter in transform.parameters())])
    for other in found[1:]:
        for got, wanted in zip(other, found[0], strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.usefixtures("users_defaults")
def test_log_dets_under_autocast(training):
    transform, x = fp.DenseTransform(30, activation=None).train(training), torch.randn(4, 30)
    wanted = torch.linalg.slogdet(random(transform).weight.detach()).logabsdet.expand(4)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        torch.testing.assert_close(transform(x)[1].detach(), wanted, atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            transform.weight[0].mul_(1.0001)
        wanted = torch.linalg.slogdet(transform.weight.detach()).logabsdet.expand(4)
        torch.testing.assert_close(transform(x)[1].detach(), wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_half_precision(case, gradient, dtype):
    """Trains, evaluates, inverts, in the dtype of the model and near what double precision gives."""
    make, x = case
    exact = random(make(gradient=gradient)).double()
    transform, eps = copy.deepcopy(exact).to(dtype), torch.finfo(dtype).eps
    exact.load_state_dict({name: value.double() for name, value in transform.state_dict().items()})
    x = x.to(dtype)
    for training in (True, False):
        transform.train(training).zero_grad()
        exact.zero_grad()
        for low, high in zip(directions_of(transform), directions_of(exact), strict=True):
            for got, wanted in zip(low(x), high(x.double()), strict=True):
                assert got.dtype == dtype
                torch.testing.assert_close(got.double(), wanted, atol=20 * eps, rtol=20 * eps)
        for part, inputs in ((transform, x), (exact, x.double())):
            loss_of(part, inputs).backward()
            loss_of(part.inverse, inputs).backward()
        for got, wanted in zip(transform.parameters(), exact.parameters(), strict=True):
            scale = float(wanted.grad.abs().max())
            torch.testing.assert_close(got.grad.double(), wanted.grad, atol=40 * eps * scale, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_made_in_half_precision(dtype):
    torch.set_default_dtype(dtype)
    for make, event in MAKES.values():
        transform = make()
        assert transform.weight.dtype == dtype
        y, ladj = transform(torch.randn(4, *event))
        assert y.dtype == ladj.dtype == dtype
    transform = fp.DenseTransform(3, activation=None)
    transform.whiten(2 * torch.randn(500, 3))
    assert abs(float(transform(torch.zeros(3))[1].detach()) + 3 * torch.tensor(2.0).double().log()) < 0.3
