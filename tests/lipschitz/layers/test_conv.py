"""Convolutions: their norm is that of the operator, at every image size."""

import copy
import math

import pytest
import torch
from torch import nn

import flowplug as fp

TWO_NORMS = [fp.Gram(), fp.SVD(), fp.PowerIteration(tol=1e-5, max_iterations=3000)]
NORMS = [*TWO_NORMS, fp.InfNorm(), fp.OneNorm(), fp.InducedNorm(1.6, 1.6), fp.InducedNorm(3, 3), fp.LearnedOrder()]
SLACK = {1: 1.0013, 2: 1.0174, 3: 1.0601}


def operator(layer, shape, weight):
    """The matrix of a convolution without bias on events of this shape, built entry by entry."""
    size = math.prod(shape)
    rows = layer.affine(torch.eye(size).reshape(size, *shape), weight, None)
    return rows.flatten(1).T


def measured(matrix, norm):
    """The norm, or a value below it that the power method finds."""
    order = norm.certify(torch.eye(2)).domain
    if order in (1.0, 2.0, math.inf):
        return float(torch.linalg.matrix_norm(matrix, order))
    return float(fp.InducedNorm(order, order).estimate(matrix, rtol=1e-3))


# Torch's own, about a copy it makes.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
class TestAgainstTheOperator:
    @pytest.mark.parametrize("norm", NORMS, ids=str)
    @pytest.mark.parametrize("kernel", [1, 2, 3, (1, 4)])
    @pytest.mark.parametrize(
        ("mode", "padding"),
        [("zeros", "same"), ("zeros", "valid"), ("zeros", 1), ("zeros", (2, 3)), ("circular", "same"), ("circular", 0)],
    )
    def test_the_bound_holds_at_every_size(self, norm, kernel, mode, padding, eps):
        layer = fp.LipschitzConv2d(2, 3, kernel, padding=padding, padding_mode=mode, bound=0.9, norm=norm)
        nn.init.normal_(layer.weight)
        weight = layer.bounded_weight().detach()
        certified = float(fp.lipschitz_bound(layer))
        assert certified <= 0.9 * (1 + max(1000 * eps, 1e-5 * isinstance(norm, fp.PowerIteration)))
        for height, width in ((4, 4), (6, 7)):
            assert measured(operator(layer, (2, height, width), weight), layer.norm) <= certified * (1 + 1000 * eps)

    @pytest.mark.slow
    @pytest.mark.parametrize("norm", TWO_NORMS, ids=str)
    @pytest.mark.parametrize("mode", ["zeros", "circular"])
    @pytest.mark.parametrize(("kernel", "dilation"), [(2, 1), (3, 1), (3, 2), (5, 1)])
    def test_the_2_norm_is_close_on_large_images(self, norm, mode, kernel, dilation):
        layer = fp.LipschitzConv2d(3, 2, kernel, padding_mode=mode, dilation=dilation, norm=norm, bound=0.9)
        nn.init.normal_(layer.weight)
        weight = layer.bounded_weight().detach()
        truth = measured(operator(layer, (3, 20, 20), weight), norm)
        # The grid, what Gram iteration adds for 2 x 2 matrices, and the margins of an image that is not infinite.
        loose = SLACK[2] * 2 ** (1 / 2**9) * (1.0 if mode == "circular" else 1.06)
        assert 0.9 / (loose * 1.05) <= truth <= 0.9 * 1.0001

    @pytest.mark.parametrize(("order", "norm"), [(math.inf, fp.InfNorm()), (1, fp.OneNorm())])
    def test_inf_and_1_norm_are_exact(self, order, norm, eps):
        layer = fp.LipschitzConv2d(2, 3, 3, norm=norm)
        truth = torch.linalg.matrix_norm(operator(layer, (2, 5, 5), layer.weight.detach()), order)
        torch.testing.assert_close(norm.measure(layer.weight.detach()), truth, rtol=100 * eps, atol=0)

    @pytest.mark.parametrize("make", [fp.LipschitzConv1d, fp.LipschitzConv2d, fp.LipschitzConv3d])
    def test_one_two_and_three_dimensions(self, make):
        layer = make(2, 3, 3, bound=0.9)
        nn.init.normal_(layer.weight)
        spatial = layer.weight.dim() - 2
        truth = measured(
            operator(layer, (2, *[{1: 64, 2: 12, 3: 6}[spatial]] * spatial), layer.bounded_weight().detach()), fp.SVD()
        )
        assert 0.9 / SLACK[spatial] / {1: 1.02, 2: 1.06, 3: 1.3}[spatial] <= truth <= 0.9

    def test_a_peak_between_the_points_of_the_grid_is_covered(self):
        omega = torch.linspace(0, 2 * math.pi, 5001, dtype=torch.float64)
        tight = 0.0
        for _ in range(50):
            weight = torch.randn(1, 1, 3, dtype=torch.float64)
            symbol = (weight[0].to(torch.cdouble) @ torch.exp(-1j * omega * torch.arange(3)[:, None])).abs()
            grid = torch.fft.fft(weight, n=64).abs().max()
            truth, bound = float(symbol.max()), float(fp.SVD().measure(weight))
            assert truth <= bound
            tight = max(tight, truth / float(grid))
        assert tight > 1.0002  # the points alone are no bound


class TestLayer:
    @pytest.mark.parametrize("norm", NORMS[:5], ids=str)
    @pytest.mark.parametrize("channels", [(3, 2), (2, 3)])
    def test_gradcheck(self, norm, channels):
        weight = torch.randn(*channels, 2, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda w: norm.project(w, 0.9), (weight,))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("norm", [fp.PowerIteration(), fp.Gram(), fp.InfNorm()], ids=str)
    def test_weights_of_half_precision(self, norm, dtype):
        layer = fp.LipschitzConv2d(3, 4, 3, bound=0.9, norm=norm).to(dtype)
        with torch.no_grad():
            layer.weight.mul_(10)
        for _ in range(3):
            weight = layer.bounded_weight()
        assert weight.dtype == dtype
        size = float(layer.norm.measure(weight.detach().float()))
        assert abs(size / 0.9 - 1) <= torch.finfo(dtype).eps + 0.005 * isinstance(norm, fp.PowerIteration)

    def test_a_single_pixel_is_a_matrix(self, eps):
        for norm in NORMS:
            layer = fp.LipschitzConv2d(4, 3, 1, norm=norm)
            weight = layer.weight.detach()
            norm = layer.norm
            torch.testing.assert_close(norm.measure(weight), norm.measure(weight.flatten(1)), rtol=100 * eps, atol=0)

    @pytest.mark.parametrize("norm", NORMS, ids=str)
    def test_a_state_dict_fits_a_fresh_layer_whatever_the_image(self, norm):
        layer = fp.LipschitzConv2d(2, 3, 3, norm=norm)
        layer(torch.randn(2, 2, 9, 7))
        fresh = fp.LipschitzConv2d(2, 3, 3, norm=norm)
        fresh(torch.randn(2, 2, 4, 4))
        fresh.load_state_dict(layer.state_dict())
        x = torch.randn(2, 2, 5, 5)
        layer.eval(), fresh.eval()
        assert torch.equal(layer(x), fresh(x))
        assert torch.equal(copy.deepcopy(layer)(x), layer(x))

    def test_forward_is_a_convolution_with_the_bounded_weight(self, eps):
        layer = fp.LipschitzConv2d(2, 3, 3, padding=1, dilation=1)
        x = torch.randn(4, 2, 5, 5)
        wanted = nn.functional.conv2d(x, layer.bounded_weight(), layer.bias, padding=1)
        torch.testing.assert_close(layer(x), wanted, atol=10 * eps, rtol=0)
        torch.testing.assert_close(layer(x[0]), wanted[0], atol=10 * eps, rtol=0)

    @pytest.mark.parametrize(
        ("keywords", "message"),
        [
            ({"padding_mode": "reflect"}, "padding_mode='reflect' has no known bound"),
            ({"padding_mode": "replicate"}, "padding_mode='replicate' has no known bound"),
            ({"padding_mode": "circular", "padding": 2}, "returns pixels twice"),
            ({"norm": fp.InducedNorm(1.5, 2)}, r"use one order for both \(LearnedOrder\(shared=True\)"),
            ({"norm": fp.LearnedOrder().chain(2)[0]}, "depends on the size of the image"),
            ({"bound": 0.0}, r"LipschitzConv2d\(bound=...\) must be a positive finite number"),
        ],
    )
    def test_what_has_no_bound_is_refused_by_name(self, keywords, message):
        with pytest.raises(fp.LipschitzError, match=message):
            fp.LipschitzConv2d(2, 3, 3, **keywords)

    @pytest.mark.parametrize("keyword", ["stride", "groups"])
    def test_strides_and_groups_are_no_arguments(self, keyword):
        with pytest.raises(TypeError, match=keyword):
            fp.LipschitzConv2d(2, 2, 3, **{keyword: 2})

    def test_wrong_inputs(self):
        for shape in ((2, 3, 4, 4), (3, 4, 4), (2, 4)):
            with pytest.raises(fp.ShapeError, match=r"LipschitzConv2d expects inputs \(B, 2, H, W\)"):
                fp.LipschitzConv2d(2, 3, 3)(torch.zeros(shape))


class TestPlainConvolutions:
    @pytest.mark.parametrize("make", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
    def test_are_bounded_in_the_2_norm(self, make):
        layer = make(2, 3, 3, padding=1)
        bound = fp.lipschitz_bound(nn.Sequential(layer, nn.Tanh()))
        spatial = layer.weight.dim() - 2
        size = 2 * 5**spatial
        matrix = nn.Sequential(layer)(torch.eye(size).reshape(size, 2, *[5] * spatial)) - layer(
            torch.zeros(1, 2, *[5] * spatial)
        )
        truth = float(torch.linalg.matrix_norm(matrix.detach().flatten(1), 2))
        assert truth <= float(bound) <= 2 * truth
        assert bound.domain == 2

    @pytest.mark.parametrize("stride", [2, 3, (1, 2)])
    @pytest.mark.parametrize("keywords", [{"padding": 1}, {}, {"padding": 1, "padding_mode": "circular"}], ids=str)
    def test_with_a_stride_are_bounded_as_without(self, stride, keywords):
        layer = nn.Conv2d(2, 3, 3, stride=stride, bias=False, **keywords)
        plain = nn.Conv2d(2, 3, 3, bias=False, **keywords)
        plain.load_state_dict(layer.state_dict())
        bound = fp.lipschitz_bound(layer)
        assert float(bound) == float(fp.lipschitz_bound(plain))
        matrix = layer(torch.eye(72).reshape(72, 2, 6, 6)).detach().flatten(1)
        assert float(torch.linalg.matrix_norm(matrix, 2)) <= float(bound)

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            (nn.Conv2d(2, 2, 3, groups=2), "Conv2d with groups=2 has no known bound"),
            (nn.Conv1d(2, 2, 3, padding=1, padding_mode="reflect"), "Conv1d with padding_mode='reflect'"),
        ],
    )
    def test_the_rest_is_refused_by_name(self, layer, message):
        with pytest.raises(fp.LipschitzError, match=message):
            fp.lipschitz_bound(layer)
