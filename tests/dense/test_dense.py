"""Dense transforms: the relative gradient against dense algebra, cached inverses, activations."""

import copy
import math

import pytest
import torch

import flowplug as fp


def flow(depth, gradient, *, bias=True):
    layers = [
        fp.DenseTransform(3, gradient=gradient, bias=bias, activation=None if i == depth - 1 else fp.TanhLinear())
        for i in range(depth)
    ]
    model = fp.ComposedTransform(*layers)
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def loss_of(model, x, weights, slope):
    """A loss with per-sample weights that depends on y and ladj."""
    y, ladj = model(x)
    return weights @ ((y * slope).sin().sum(1) - ladj)


def conv(**keywords):
    return fp.CircularConv2d(2, 1, **keywords)


def directions(depth, gradient, bias, loss=loss_of):
    model = flow(depth, gradient, bias=bias)
    torch.manual_seed(2)
    loss(model, torch.randn(7, 3), torch.linspace(0, 1, 7), torch.randn(3)).backward()
    return [(part.weight.detach(), part.bias, part.weight.grad) for part in model.transforms]


class TestGradients:
    @pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
    @pytest.mark.parametrize("bias", [True, False])
    def test_relative_is_the_ordinary_gradient_times_the_augmented_gram_matrix(self, depth, bias, eps):
        pairs = zip(directions(depth, fp.Relative(), bias), directions(depth, fp.Euclidean(), bias), strict=True)
        for (weight, b, relative), (_, b_euclidean, euclidean) in pairs:
            if not bias:
                wanted = euclidean @ weight.T @ weight
            else:
                inner = euclidean @ weight.T + torch.outer(b_euclidean.grad, b.detach())
                wanted = inner @ weight
                wanted_bias = inner @ b.detach() + b_euclidean.grad
                torch.testing.assert_close(b.grad, wanted_bias, atol=1e5 * eps, rtol=1e5 * eps)
            torch.testing.assert_close(relative, wanted, atol=1e5 * eps, rtol=1e5 * eps)

    @pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
    @pytest.mark.parametrize("bias", [True, False])
    def test_transposed_relative(self, depth, bias, eps):
        pairs = zip(
            directions(depth, fp.TransposedRelative(), bias), directions(depth, fp.Euclidean(), bias), strict=True
        )
        for (weight, b, transposed), (_, b_euclidean, euclidean) in pairs:
            outer = weight @ weight.T
            torch.testing.assert_close(transposed, outer @ euclidean, atol=1e5 * eps, rtol=1e5 * eps)
            if bias:
                torch.testing.assert_close(b.grad, outer @ b_euclidean.grad, atol=1e5 * eps, rtol=1e5 * eps)

    @pytest.mark.parametrize("depth", [1, 3])
    def test_euclidean_is_that_of_autograd(self, depth, eps):
        def reference(model, x, weights, slope):
            ladj = 0
            for part in model.transforms:
                x = x @ part.weight.T + part.bias
                ladj = ladj + torch.linalg.slogdet(part.weight).logabsdet
                if part.activation is not None:
                    x, other = part.activation(x)
                    ladj = ladj + other
            return weights @ ((x * slope).sin().sum(1) - ladj)

        pairs = zip(
            directions(depth, fp.Euclidean(), True),  # noqa: FBT003
            directions(depth, fp.Euclidean(), True, reference),  # noqa: FBT003
            strict=True,
        )
        for (_, b, got), (_, b_wanted, wanted) in pairs:
            torch.testing.assert_close(got, wanted, atol=1e4 * eps, rtol=1e4 * eps)
            torch.testing.assert_close(b.grad, b_wanted.grad, atol=1e4 * eps, rtol=1e4 * eps)

    def test_gradient_of_the_input_is_the_ordinary_one(self, eps):
        x = torch.randn(5, 3, requires_grad=True)
        gradients = [
            torch.autograd.grad(loss_of(flow(2, g), x, torch.ones(5), torch.ones(3)), x)[0]
            for g in (fp.Relative(), fp.Euclidean())
        ]
        torch.testing.assert_close(*gradients, atol=1000 * eps, rtol=0)

    @pytest.mark.parametrize("gradient", [fp.Relative(), fp.TransposedRelative(), fp.Euclidean()])
    def test_linear_in_the_batch(self, gradient, eps):
        """Accumulation over parts, and so the average over ranks, equals the whole batch."""
        x, model = torch.randn(8, 3), flow(2, gradient)
        whole, parts = copy.deepcopy(model), copy.deepcopy(model)
        loss_of(whole, x, torch.ones(8), torch.ones(3)).backward()
        for part in x.split(3):
            loss_of(parts, part, torch.ones(len(part)), torch.ones(3)).backward()
        for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, atol=1e4 * eps, rtol=1e4 * eps)

    @pytest.mark.parametrize("gradient", [fp.Relative(), fp.TransposedRelative()])
    def test_data_off_the_origin(self, gradient):
        """Without the log-det's part in the bias this settles at another point: at the optimum E[y] = 0, Cov[y] = I."""
        x = torch.randn(500, 2) @ torch.tensor([[1.0, 0.3], [0.0, 0.5]]) + torch.tensor([1.0, -2.0])
        transform = fp.DenseTransform(2, activation=None, gradient=gradient)
        optimizer = torch.optim.SGD(transform.parameters(), 0.01)
        for _ in range(5000):
            y, ladj = transform(x)
            optimizer.zero_grad()
            (y.square().sum(1) / 2 - ladj).mean().backward()
            optimizer.step()
        y = transform(x)[0].detach()
        torch.testing.assert_close(y.mean(0), torch.zeros(2), atol=1e-3, rtol=0)
        torch.testing.assert_close(y.T @ y / len(y), torch.eye(2), atol=1e-3, rtol=0)
        for parameter in transform.parameters():
            assert float(parameter.grad.abs().max()) < 1e-3

    def test_frozen_parts(self):
        transform, x = fp.DenseTransform(3), torch.randn(4, 3, requires_grad=True)
        transform.weight.requires_grad_(requires_grad=False)
        y, ladj = transform(x)
        (y.sum() + ladj.sum()).backward()
        assert x.grad is not None
        assert transform.bias.grad is not None
        assert transform.weight.grad is None
        transform.requires_grad_(requires_grad=False)
        assert not transform(x.detach())[0].requires_grad

    @pytest.mark.parametrize("gradient", [fp.Relative(), fp.TransposedRelative()])
    @pytest.mark.parametrize(
        ("make", "event"), [(lambda **k: fp.DenseTransform(2, activation=None, **k), (2,)), (conv, (2, 3, 3))]
    )
    @pytest.mark.parametrize("frozen", ["weight", "bias"])
    def test_beside_a_frozen_part_the_other_descends(self, frozen, make, event, gradient, eps):
        """A symmetric positive definite matrix times the ordinary gradient: it settles where that vanishes."""
        transform, ordinary = make(gradient=gradient), make(gradient=fp.Euclidean())
        for parameter in transform.parameters():
            torch.nn.init.normal_(parameter)
        ordinary.load_state_dict(transform.state_dict())
        weight, bias = (parameter.detach() for parameter in transform.parameters())
        x, found = torch.randn(6, *event), []
        for part in (transform, ordinary):
            getattr(part, frozen).requires_grad_(requires_grad=False)
            y, ladj = part(x)
            (y.sin().flatten(1).sum(1) - ladj).sum().backward()
            assert getattr(part, frozen).grad is None
            found.append(part.bias.grad if frozen == "weight" else part.weight.grad)
        weight, shape = weight.reshape(2, 2), (2, 2) if frozen == "bias" else (2,)
        direction, euclidean = (part.reshape(shape) for part in found)
        if gradient == fp.TransposedRelative():
            wanted = weight @ weight.T @ euclidean
        elif frozen == "bias":
            wanted = euclidean @ weight.T @ weight
        else:
            wanted = euclidean * (1 + bias.square().sum())
        torch.testing.assert_close(direction, wanted, atol=1e5 * eps, rtol=1e5 * eps)

    def test_inputs_are_differentiable_twice(self, eps):
        transform, x = fp.DenseTransform(3, init=torch.nn.init.normal_), torch.randn(4, 3, requires_grad=True)

        def score_loss(forward):
            y, ladj = forward(x)
            (score,) = torch.autograd.grad((ladj - y.square().sum(1) / 2).sum(), x, create_graph=True)
            return torch.autograd.grad(score.square().sum(), x)

        def plain(x):
            y, ladj = transform.activation(x @ transform.weight.T + transform.bias)
            return y, ladj + torch.linalg.slogdet(transform.weight).logabsdet

        torch.testing.assert_close(score_loss(transform), score_loss(plain), atol=1e5 * eps, rtol=1e5 * eps)

    @pytest.mark.parametrize("parameter", ["weight", "bias"])
    def test_a_loss_of_the_score_does_not_train(self, parameter):
        """Ordinary gradients of the score would be added to relative directions of the rest."""
        transform, x = fp.DenseTransform(3), torch.randn(4, 3, requires_grad=True)
        y, ladj = transform(x)
        (score,) = torch.autograd.grad((ladj - y.square().sum(1) / 2).sum(), x, create_graph=True)
        with pytest.raises(fp.SecondDerivativeError, match="DenseTransform is differentiable once in W and b"):
            torch.autograd.grad(score.square().sum(), getattr(transform, parameter))

    @pytest.mark.parametrize("frozen", ["weight", "bias", None])
    def test_directions_are_not_differentiable(self, frozen):
        transform = fp.DenseTransform(3)
        if frozen:
            getattr(transform, frozen).requires_grad_(requires_grad=False)
        parameters = [parameter for parameter in transform.parameters() if parameter.requires_grad]
        directions = torch.autograd.grad(transform(torch.randn(4, 3))[0].sum(), parameters, create_graph=True)
        for direction in directions:
            with pytest.raises(fp.SecondDerivativeError, match="DenseTransform is differentiable once in W and b"):
                torch.autograd.grad(direction.sum(), parameters)


class TestValue:
    def test_deferred(self):
        transform = fp.DenseTransform(3, activation=None, value=fp.Deferred(every=3))
        x, values = torch.zeros(1, 3), []
        for i in range(7):
            with torch.no_grad():
                transform.weight.copy_(math.exp(i) * torch.eye(3))
            values.append(float(transform(x)[1].detach()))
        assert values == pytest.approx([0, 0, 0, 9, 9, 9, 18], abs=1e-5)
        assert float(transform.eval()(x)[1].detach()) == pytest.approx(18, abs=1e-5)

    def test_the_gradient_is_never_deferred(self):
        gradients = []
        for value in (fp.ExactValue(), fp.Deferred(every=10)):
            torch.manual_seed(0)
            transform, x = fp.DenseTransform(3, value=value), torch.randn(5, 3)
            for _ in range(2):
                with torch.no_grad():
                    transform.weight.mul_(1.5)
                transform.zero_grad()
                y, ladj = transform(x)
                (y.square().sum() - ladj.sum()).backward()
            gradients.append(transform.weight.grad)
        assert torch.equal(*gradients)


class TestInverse:
    def check(self, transform, call=None):
        x = torch.randn(5, 3)
        with torch.no_grad():
            y, ladj = (call or transform)(x)
            back, inverse_ladj = transform.inverse(y) if call is None else call.inverse(y)
        torch.testing.assert_close(back, x, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(inverse_ladj, -ladj, atol=1e-4, rtol=1e-4)

    def test_follows_every_change_of_the_weights(self):
        transform = fp.DenseTransform(3)
        self.check(transform)
        y, ladj = transform(torch.randn(5, 3))
        (y.square().sum() - ladj.sum()).backward()
        torch.optim.SGD(transform.parameters(), 0.1).step()
        self.check(transform)
        transform.load_state_dict(fp.DenseTransform(3).state_dict())
        self.check(transform)
        twin = copy.deepcopy(transform)
        with torch.no_grad():
            twin.weight.mul_(2)
        self.check(twin)
        self.check(transform)
        # A copy counts the changes of its weights anew, so that some number of them meets the count of the original.
        for changes in range(12):
            twin = copy.deepcopy(transform)
            with torch.no_grad():
                for _ in range(changes):
                    twin.weight.mul_(1.1)
            self.check(twin)

    def test_functional_call(self, eps):
        transform, other = fp.DenseTransform(3), fp.DenseTransform(3)
        y = torch.randn(5, 3)
        with torch.no_grad():
            own = transform.inverse(y)[0]
            called = torch.func.functional_call(
                fp.InverseTransform(transform), {f"transform.{k}": v for k, v in other.state_dict().items()}, (y,)
            )[0]
            torch.testing.assert_close(called, other.inverse(y)[0], atol=100 * eps, rtol=0)
            assert torch.equal(transform.inverse(y)[0], own)

    def test_factors_are_reused(self, monkeypatch):
        transform, calls, factor = fp.DenseTransform(3), [], torch.linalg.lu_factor_ex
        monkeypatch.setattr(torch.linalg, "lu_factor_ex", lambda w: calls.append(1) or factor(w))
        for _ in range(3):
            transform.inverse(torch.randn(5, 3))
        assert len(calls) == 1

    def test_singular_matrices(self):
        transform = fp.DenseTransform(3)
        with torch.no_grad():
            transform.weight[0] = transform.weight[1]
        with pytest.raises(fp.SingularMatrixError, match=r"singular to working precision: its condition number is inf"):
            transform.inverse(torch.randn(5, 3))
        with torch.no_grad():
            transform.weight.zero_()
        for mode in (True, False):
            with pytest.raises(fp.SingularMatrixError, match=r"log\|det W\| = -inf"):
                transform.train(mode)(torch.randn(5, 3))

    @pytest.mark.parametrize("decades", [0.5, 1.5])
    def test_a_solution_without_digits_is_refused(self, decades, eps):
        """Scales that differ by 1 / eps, less and more half a decade: the estimate is within a factor of 3."""
        transform = fp.DenseTransform(20, activation=None)
        left, right = (torch.linalg.qr(torch.randn(20, 20)).Q for _ in range(2))
        scales = torch.logspace(0, math.log10(eps) + 1 - decades, 20)
        with torch.no_grad():
            transform.weight.copy_(left * scales @ right)
        if decades < 1:
            transform.inverse(torch.randn(5, 20))
        else:
            with pytest.raises(fp.SingularMatrixError, match=r"its condition number is [\d.]+e\+\d+"):
                transform.inverse(torch.randn(5, 20))


class TestStart:
    def test_scaled_identity(self):
        assert torch.equal(fp.DenseTransform(3, init=fp.ScaledIdentity(-0.5)).weight, -0.5 * torch.eye(3))
        kernel = fp.CircularConv2d(3, 4, init=fp.ScaledIdentity(2.0)).weight
        assert torch.equal(kernel[:, :, 1, 1], 2 * torch.eye(3))
        assert float(kernel.abs().sum().detach()) == 6

    def test_orthogonal_is_the_default(self, eps):
        weight = fp.DenseTransform(5).weight
        torch.testing.assert_close(weight @ weight.T, torch.eye(5), atol=100 * eps, rtol=0)

    @pytest.mark.parametrize(
        ("transform", "x", "dims"),
        [
            (lambda: fp.DenseTransform(3, activation=None), (500, 3), (0,)),
            (lambda: fp.DenseTransform(3, activation=None), (10, 50, 3), (0, 1)),
            (lambda: fp.DenseConv1x1(3, activation=None), (20, 3, 5, 5), (0, 2, 3)),
        ],
    )
    def test_whitening(self, transform, x, dims):
        transform = transform()
        mixing = torch.randn(3, 3)
        channels = transform.event_dim * -1
        x = (torch.randn(x).movedim(channels, -1) @ mixing + 5).movedim(-1, channels)
        transform.whiten(x, shrinkage=0.0)
        y = transform(x)[0].detach().movedim(channels, -1).reshape(-1, 3)
        torch.testing.assert_close(y.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
        torch.testing.assert_close(y.T @ y / len(y), torch.eye(3), atol=1e-3, rtol=0)

    def test_whitening_where_data_do_not_vary(self):
        transform, x = fp.DenseTransform(3, activation=None), torch.randn(100, 3)
        x[:, 2] = 4.0
        transform.whiten(x)
        assert float(transform(x)[0].detach().abs().max()) < 10
        assert float(transform.weight[2, 2].detach()) == pytest.approx(
            float((1e-3 * x.var(0, correction=0).mean()).rsqrt()), rel=1e-3
        )

    def test_whitening_refuses(self):
        with pytest.raises(fp.ShapeError, match="two rows or more; got bias=True and 1 rows"):
            fp.DenseTransform(3).whiten(torch.randn(1, 3))
        with pytest.raises(fp.SingularMatrixError, match=r"pass a shrinkage above 0.001, or rows that are not all"):
            fp.DenseTransform(3).whiten(torch.ones(9, 3))
        with pytest.raises(fp.ShapeError, match="needs a transform with bias"):
            fp.DenseTransform(3, bias=False).whiten(torch.randn(9, 3))
        with pytest.raises(fp.ShapeError, match=r"expects inputs \(\*batch, \*event\) with event \(3,\)"):
            fp.DenseTransform(3).whiten(torch.randn(9, 4))


@pytest.mark.usefixtures("users_defaults")
@pytest.mark.parametrize("gradient", [fp.Relative(), fp.TransposedRelative(), fp.Euclidean()])
@pytest.mark.parametrize(
    ("make", "event"),
    [
        (lambda gradient: fp.DenseTransform(3, gradient=gradient), (3,)),
        (lambda gradient: fp.CircularConv2d(3, gradient=gradient), (3, 5, 5)),
    ],
)
def test_autocast(make, event, gradient):
    """Products in bfloat16, with its 8 bits; results and gradients in float32, log-dets without loss."""
    transform, x, found = make(gradient), torch.randn(64, *event), []
    for enabled in (False, True):
        transform.zero_grad()
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=enabled):
            y, ladj = transform(x)
        assert y.dtype == ladj.dtype == torch.float32
        (y.square().flatten(1).sum(1) - ladj).mean().backward()
        found.append((y.detach(), transform.weight.grad.clone(), transform.bias.grad.clone()))
    for exact, lowered in zip(*found, strict=True):
        assert lowered.dtype == torch.float32
        assert 0 < float((exact - lowered).abs().max()) < 0.05 * float(exact.abs().max()) + 0.02


class TestActivations:
    EXAMPLES = (
        lambda: fp.SmoothLeakyReLU(0.3),
        lambda: fp.SmoothLeakyReLU(0.01),
        fp.TanhLinear,
        lambda: fp.TanhLinear(5.0, 0.01),
    )

    @pytest.mark.parametrize("make", EXAMPLES)
    def test_inverse_at_every_scale(self, make, eps):
        activation = make()
        y = torch.cat([scale * torch.randn(500, 3) for scale in (1e-6, 1.0, 10.0, 1e4)])
        x = activation.inverse(y)[0]
        torch.testing.assert_close(activation(x)[0], y, atol=10 * eps, rtol=10 * eps)

    @pytest.mark.parametrize("make", EXAMPLES)
    def test_inverse_is_differentiable(self, make):
        y = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(make().inverse, (y,))

    def test_failure_is_loud(self, monkeypatch):
        activation = fp.TanhLinear()
        monkeypatch.setattr(activation, "max_steps", 1)
        with pytest.raises(fp.NotConverged, match=r"TanhLinear was not inverted in 1 Newton steps for \d+ entries"):
            activation.inverse(torch.randn(4, 3))

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: fp.SmoothLeakyReLU(0.0), r"in \(0, 1\]; got 0.0"),
            (lambda: fp.TanhLinear(1.0, 0.0), "positive"),
            (lambda: fp.TanhLinear(math.inf, 0.1), "positive"),
            (lambda: fp.Deferred(0), "at least 1; got 0"),
            (lambda: fp.DenseTransform(0), "at least 1 feature or channel; got 0"),
            (lambda: fp.ScaledIdentity(0.0), "finite and not 0; got 0.0"),
            (lambda: fp.ScaledIdentity(math.nan), "finite and not 0; got nan"),
            (lambda: fp.CircularConv2d(3, 0), "got 3 and 0"),
        ],
    )
    def test_bad_values(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()
