"""Convolutions with unconstrained kernels, against the matrix of the map and against each other."""

import pytest
import torch

import flowplug as fp

GRADIENTS = [fp.Relative(), fp.TransposedRelative(), fp.Euclidean()]


def random(transform):
    for parameter in transform.parameters():
        torch.nn.init.normal_(parameter)
    return transform


def jacobian(transform, x):
    return torch.autograd.functional.jacobian(lambda x: transform(x)[0], x).reshape(x.numel(), x.numel())


def gradients(transform, x, weights):
    transform.zero_grad()
    y, ladj = transform(x)
    (weights @ (y.sin().sum((1, 2, 3)) - ladj)).backward()
    return transform.weight.grad.clone(), transform.bias.grad.clone()


@pytest.mark.parametrize("size", [(5, 5), (6, 7), (5, 8), (4, 4)])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4])
def test_log_det_and_inverse_against_the_matrix(kernel_size, size, eps):
    transform = random(fp.CircularConv2d(2, kernel_size, activation=fp.TanhLinear()))
    with torch.no_grad():
        transform.weight[:, :, transform.before, transform.before] += 4 * torch.eye(2)  # well conditioned
    x = torch.randn(2, *size)
    y, ladj = transform(x)
    wanted = torch.linalg.slogdet(jacobian(transform, x)).logabsdet
    torch.testing.assert_close(ladj, wanted, atol=1e4 * eps, rtol=1e4 * eps)
    back, inverse_ladj = transform.inverse(y)
    torch.testing.assert_close(back, x, atol=1e5 * eps, rtol=0)
    torch.testing.assert_close(inverse_ladj, -ladj, atol=1e5 * eps, rtol=1e4 * eps)


def test_it_is_the_convolution_torch_computes(eps):
    transform, x = random(fp.CircularConv2d(2, 3)), torch.randn(4, 2, 5, 6)
    module = torch.nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")
    module.load_state_dict(transform.state_dict())
    torch.testing.assert_close(transform(x)[0], module(x), atol=100 * eps, rtol=0)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_kernels_of_one_tap_are_matrices_of_pixels(gradient, eps):
    conv = random(fp.CircularConv2d(3, 1, gradient=gradient))
    dense = fp.DenseConv1x1(3, activation=None, gradient=gradient)
    dense.load_state_dict({"weight": conv.weight[:, :, 0, 0], "bias": conv.bias})
    x, weights = torch.randn(4, 3, 5, 6), torch.randn(4)
    for got, wanted in zip(conv(x), dense(x), strict=True):
        torch.testing.assert_close(got, wanted, atol=1000 * eps, rtol=1000 * eps)
    for got, wanted in zip(gradients(conv, x, weights), gradients(dense, x, weights), strict=True):
        torch.testing.assert_close(got.reshape(wanted.shape), wanted, atol=1e5 * eps, rtol=1e5 * eps)


def matrices(kernel, before):
    """The matrix of a convolution of 4 x 4 images, by its effect on every image of one pixel."""
    ones = torch.eye(2 * 16).reshape(-1, 2, 4, 4)
    after = kernel.shape[-1] - 1 - before
    padded = torch.nn.functional.pad(ones, (before, after, before, after), mode="circular")
    return torch.nn.functional.conv2d(padded, kernel).reshape(32, 32).T


def test_relative_gradients_of_full_kernels(eps):
    """G K^T K of the matrices K of the convolution and G of its gradient, where every circulant is a kernel."""
    x, weights, found = torch.randn(5, 2, 4, 4), torch.randn(5), {}
    conv = random(fp.CircularConv2d(2, 4))
    for gradient in GRADIENTS:
        conv.gradient = gradient
        found[type(gradient)] = [matrices(gradients(conv, x, weights)[0], conv.before)]
    kernel, ordinary = matrices(conv.weight.detach(), conv.before), found[fp.Euclidean][0]
    bias, by_bias = conv.bias.detach(), conv.bias.grad  # the last one run is Euclidean
    # The bias at pixel 0, of this image and of every shift of it, adds b b^T on the diagonal blocks of the channels.
    shifts = torch.kron(torch.outer(by_bias, bias), torch.eye(16))
    tolerance = {"atol": 1e7 * eps, "rtol": 1e6 * eps}
    torch.testing.assert_close(found[fp.Relative][0], (ordinary @ kernel.T + shifts) @ kernel, **tolerance)
    torch.testing.assert_close(found[fp.TransposedRelative][0], kernel @ kernel.T @ ordinary, **tolerance)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_directions_descend(gradient):
    """The preconditioner is symmetric positive definite: its matrix, row by row, for a small kernel."""
    torch.manual_seed(3)
    conv = random(fp.CircularConv2d(2, 3, gradient=gradient)).double()
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    rows, count = [], conv.weight.numel() + conv.bias.numel()
    for row in torch.eye(count, dtype=torch.float64):
        # A loss whose ordinary gradient is this row: it reads the parameters behind the preconditioner alone.
        weight, bias = fp.dense._conv._Preconditioned.apply(conv.weight, conv.bias, conv, conv._size(x))
        conv.zero_grad()
        (torch.cat([weight.flatten(), bias]) @ row).backward()
        rows.append(torch.cat([conv.weight.grad.flatten(), conv.bias.grad]))
    matrix = torch.stack(rows)
    torch.testing.assert_close(matrix, matrix.T, atol=1e-10, rtol=1e-10)
    assert float(torch.linalg.eigvalsh(matrix)[0]) > 1e-6


@pytest.mark.slow
def test_learns_to_whiten_textures():
    """Images that a convolution has blurred: at the optimum the outputs are white noise, log-det and all."""
    blur = random(fp.CircularConv2d(1, 3, bias=False))
    with torch.no_grad():
        blur.weight.mul_(0.1)
        blur.weight[0, 0, 1, 1] = 1.0
        x = blur(torch.randn(500, 1, 4, 4))[0] + 0.2
    found = []
    for gradient in GRADIENTS:
        transform = fp.CircularConv2d(1, 4, gradient=gradient, init=fp.ScaledIdentity())
        optimizer = torch.optim.SGD(transform.parameters(), 0.003)
        for _ in range(1000):
            y, ladj = transform(x)
            loss = (y.square().sum((1, 2, 3)) / 2 - ladj).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append(float(loss.detach()))
    assert found == pytest.approx([found[0]] * 3, abs=1e-3)


@pytest.mark.parametrize("make", [lambda: fp.DenseConv1x1(3), lambda: fp.CircularConv2d(3)])
def test_images_of_other_sizes_and_batches(make, eps):
    transform = make()
    for shape in [(3, 4, 4), (2, 3, 8, 3), (2, 2, 3, 5, 5), (0, 3, 4, 4)]:
        x = torch.randn(shape)
        y, ladj = transform(x)
        assert ladj.shape == shape[:-3]
        torch.testing.assert_close(transform.inverse(y)[0], x, atol=1e4 * eps, rtol=0)


def test_refusals():
    with pytest.raises(fp.ShapeError, match=r"images at least as large as its kernel; got \(5, 2\) pixels"):
        fp.CircularConv2d(3)(torch.randn(2, 3, 5, 2))
    with pytest.raises(fp.ShapeError, match=r"with event \(3, None, None\)"):
        fp.CircularConv2d(3)(torch.randn(2, 4, 5, 5))
    conv = fp.CircularConv2d(3)
    (direction,) = torch.autograd.grad(conv(torch.randn(1, 3, 4, 4))[0].sum(), conv.weight, create_graph=True)
    with pytest.raises(fp.SecondDerivativeError, match="CircularConv2d is differentiable once"):
        direction.sum().backward()


def test_singular_kernels():
    transform = fp.CircularConv2d(1, 2, init=fp.ScaledIdentity()).eval()
    with torch.no_grad():
        transform.weight[0, 0] = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    # The alternating image of even width is lost.
    with pytest.raises(fp.SingularMatrixError, match="singular or not finite at 4 of 12 frequencies"):
        transform(torch.randn(1, 4, 4))
    transform(torch.randn(1, 4, 5))
    with torch.no_grad():
        transform.weight[0, 0, 0, 1] += 10 * torch.finfo(transform.weight.dtype).eps
    transform(torch.randn(1, 4, 4))
    transform.weight.data[0, 0, 0, 1] = 1 + torch.finfo(transform.weight.dtype).eps
    with pytest.raises(fp.SingularMatrixError, match="its condition number is"):
        transform.inverse(torch.randn(1, 4, 4))


def test_empty_kernels():
    with pytest.raises(ValueError, match=r"CircularConv2d needs positive sizes; got .*kernel_size=0"):
        fp.CircularConv2d(3, 0)
