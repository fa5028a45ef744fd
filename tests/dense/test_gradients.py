"""The relative gradient, against dense algebra."""

import copy

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

    @pytest.mark.slow
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
