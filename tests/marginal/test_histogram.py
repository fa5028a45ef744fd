"""Normal scores of values on a grid: exact masses, both tails, cells of little mass, derivatives, shapes, errors."""

import copy
import math

import pytest
import torch

import flowplug as fp
from flowplug.marginal import _polya
from grid import grey, slopes, started

FEW = 8  # units of rounding


def tree(counts, weight, depth=1):
    """The shares of cells, one node after the other."""
    if len(counts) == 1:
        return [1.0]
    half = 1 << ((len(counts) - 1).bit_length() - 1)
    parts = counts[:half], counts[half:]
    total, a = sum(counts), weight * depth**2
    found = []
    for part in parts:
        # A part of one cell that stands for several has no further splits.
        share = (sum(part) + a * len(part) / len(counts)) / (total + a)
        found += [share * below for below in tree(part, weight, depth + 1 + missing(part, half))]
    return found


def missing(part, half):
    """How many depths lie between a part and the first node below it with two halves in the grid."""
    return (half - 1).bit_length() - (len(part) - 1).bit_length()


class TestMasses:
    @pytest.mark.parametrize("levels", [2, 3, 5, 8, 11, 16])
    def test_are_those_of_a_polya_tree(self, levels, eps):
        counts = torch.randint(6, (3, levels)).to(torch.get_default_dtype())
        wanted = torch.tensor([tree(row, _polya.SMOOTHING) for row in counts.tolist()])
        torch.testing.assert_close(_polya.shares(counts), wanted, rtol=FEW * 10 * eps, atol=0)
        torch.testing.assert_close(wanted.sum(1), torch.ones(3))

    def test_no_rows_weigh_every_cell_the_same(self):
        for levels in (2, 3, 7, 256):
            torch.testing.assert_close(_polya.shares(torch.zeros(1, levels)), torch.full((1, levels), 1 / levels))

    @pytest.mark.parametrize("levels", [3, 16, 100])
    def test_density_integrates_to_one(self, levels):
        transform = started(levels=levels, rows=500)
        x = torch.linspace(-1, 2, 300001)[:, None].expand(-1, 4)
        y, _ = transform(x)
        slope = slopes(transform, x)
        density = slope * torch.exp(-y.double().square() / 2) / math.sqrt(2 * math.pi)
        torch.testing.assert_close(torch.trapezoid(density, dx=1e-5, dim=0), torch.ones(4).double(), atol=2e-3, rtol=0)

    def test_half_a_row_lies_beyond_either_end(self):
        transform = started()
        ends = torch.tensor([0.0, 1.0])[:, None].expand(-1, 4)
        beyond = torch.special.ndtr(-transform(ends)[0].double().abs())
        torch.testing.assert_close(beyond, torch.full((2, 4), 0.5 / 12002).double(), rtol=1e-4, atol=0)

    def test_enough_rows_give_normal_scores(self):
        y, _ = started()(grey(12000))
        torch.testing.assert_close(y.mean(0), torch.zeros(4), atol=0.05, rtol=0)
        torch.testing.assert_close(y.std(0), torch.ones(4), atol=0.05, rtol=0)
        assert bool(torch.kthvalue(y[:, 0], 6000).values.abs() < 0.05)


class TestRounding:
    """In both directions, relative to what one unit of rounding of input and output stands for."""

    @pytest.mark.parametrize("spread", ["data", "grid", "near", "far"])
    def test_a_million_points_from_data(self, spread, eps):
        transform = started()
        x = {
            "data": lambda: grey(250000),
            "grid": lambda: torch.rand(250000, 4),
            "near": lambda: 4 * torch.rand(250000, 4) - 2,
            "far": lambda: 1e6 * torch.randn(250000, 4),
        }[spread]()
        exact = copy.deepcopy(transform).double()
        with torch.no_grad():
            y, ladj = transform(x)
            back, _ = transform.inverse(y)
            wanted, exact_ladj = exact(x.double())
        slope = slopes(transform, x)
        unit = 1 + x.double().abs() + (1 + y.double().abs()) / slope
        assert bool(y.isfinite().all())
        assert float(((back - x).abs() / unit).max()) < FEW * eps
        assert float(((y - wanted).abs() / (1 + wanted.abs() + slope * (1 + x.abs()))).max()) < FEW * eps
        torch.testing.assert_close(ladj.double(), exact_ladj, atol=100 * eps, rtol=100 * eps)

    @pytest.mark.parametrize("scale", [1.0, 3.0, 1e6])
    def test_a_million_points_from_scores(self, scale, eps):
        transform, y = started(), scale * torch.randn(250000, 4)
        with torch.no_grad():
            x, inverse_ladj = transform.inverse(y)
            back, _ = transform(x)
        slope = slopes(transform, x)
        unit = 1 + y.abs() + slope * (1 + x.abs())
        assert bool(x.isfinite().all() & inverse_ladj.isfinite().all())
        assert float(((back - y).abs() / unit).max()) < FEW * eps

    @pytest.mark.parametrize("heaps", [(32767, 65535), (0, 32768)])
    def test_beside_a_gap_of_less_mass_than_rounding(self, heaps, eps):
        """An inverse does not leap over the edge of the gap into a heap."""
        transform = fp.HistogramGaussianization(1, levels=65536).eval()
        transform.counts[0, list(heaps)] = 32000
        y, steepest = torch.linspace(-1e-4, 1e-4, 100001)[:, None], 65536 * 0.5 / 0.4
        x, _ = transform.inverse(y)
        assert bool((x.diff(dim=0) >= 0).all())
        assert float((transform(x)[0] - y).abs().max()) < FEW * eps * steepest

    def test_strictly_increasing_and_continuous(self, eps):
        transform = started()
        edges = torch.linspace(-2, 3, 257)[:, None].expand(-1, 4)
        assert bool((transform(edges)[0].diff(dim=0) > 0).all())
        edges = (torch.arange(257) / 256)[:, None].expand(-1, 4)
        nearby = torch.nextafter(edges, torch.tensor(-1.0)), torch.nextafter(edges, torch.tensor(2.0))
        below, above = (transform(x)[0] for x in nearby)
        steps, units = above - below, (1 + edges) * (slopes(transform, nearby[0]) + slopes(transform, nearby[1]))
        assert bool((steps > -FEW * eps).all())
        assert bool((steps <= FEW * eps * (1 + below.abs() + units)).all())

    def test_log_density_is_finite_anywhere(self):
        x = torch.cat([torch.linspace(-1e6, 1e6, 1001), torch.linspace(-0.1, 1.1, 100001)])[:, None].expand(-1, 4)
        y, ladj = started()(x)
        assert bool((ladj - y.square().sum(1) / 2).isfinite().all())


class TestDerivatives:
    def test_first_and_second(self):
        transform = started(rows=300, levels=8).double()
        x = torch.rand(20, 4, dtype=torch.float64).mul(1.6).sub(0.3).requires_grad_()
        y = torch.randn(20, 4, dtype=torch.float64).requires_grad_()
        for direction, at in ((transform, x), (transform.inverse, y)):
            assert torch.autograd.gradcheck(direction, at)
            assert torch.autograd.gradgradcheck(direction, at)

    @pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
    def test_at_the_ends_and_in_the_middle(self, at):
        """Where the pieces meet, a derivative is that of one of them."""
        transform = fp.HistogramGaussianization(1, levels=2)
        transform.start(torch.tensor([[0.2], [0.7], [0.3], [0.8]]))
        x = torch.full((1, 1), at, requires_grad=True)
        y, ladj = transform(x)
        torch.testing.assert_close(torch.autograd.grad(y, x)[0].log().sum(), ladj[0].detach())
        y = y.detach().requires_grad_()
        x, ladj = transform.inverse(y)
        torch.testing.assert_close(torch.autograd.grad(x, y)[0].log().sum(), ladj[0].detach())

    def test_hessian_by_torch_func(self):
        transform, x = started(rows=300, levels=8), torch.rand(4)
        hessian = torch.func.hessian(lambda v: transform(v)[1])(x)
        (gradient,) = torch.autograd.grad(transform(x.requires_grad_())[1], x, create_graph=True)
        wanted = torch.stack([torch.autograd.grad(g, x, retain_graph=True)[0] for g in gradient])
        torch.testing.assert_close(hessian, wanted)


class TestShapes:
    def test_channels_share_over_pixels_of_any_size(self):
        transform = fp.HistogramGaussianization(2, event_dim=3, levels=16)
        assert (transform.event_shape, transform.counts.shape) == ((2, None, None), (2, 16))
        transform.start(torch.rand(300, 2, 5, 4))
        assert float(transform.counts.sum()) == pytest.approx(600)
        x = torch.rand(7, 2, 3, 3)
        y, ladj = transform(x)
        flat = x.movedim(1, -1).reshape(-1, 2)
        twin = fp.HistogramGaussianization(2, levels=16).eval()
        twin.load_state_dict(transform.state_dict())
        torch.testing.assert_close(y.movedim(1, -1).reshape(-1, 2), twin(flat)[0])
        torch.testing.assert_close(ladj, twin(flat)[1].reshape(7, 9).sum(1))

    def test_pixels_have_their_own(self):
        transform, x = fp.HistogramGaussianization((1, 2, 2), levels=256), grey(2000).reshape(-1, 1, 2, 2)
        transform.start(x)
        twin = fp.HistogramGaussianization(4)
        twin.start(x.flatten(1))
        torch.testing.assert_close(transform(x)[0].flatten(1), twin(x.flatten(1))[0])
        torch.testing.assert_close(transform(x)[1], twin(x.flatten(1))[1])

    def test_other_units(self):
        x, low, high = grey(2000), -3.0, 17.0
        transform, twin = fp.HistogramGaussianization(4, low=low, high=high), fp.HistogramGaussianization(4)
        scaled = low + (high - low) * x
        transform.start(scaled)
        twin.load_state_dict(transform.state_dict())
        torch.testing.assert_close(transform(scaled)[1], twin(x)[1] - 4 * math.log(high - low), atol=1e-3, rtol=1e-3)

    def test_bad_arguments(self):
        make = fp.HistogramGaussianization
        for call, error, message in (
            (lambda: make(0), fp.ShapeError, "positive sizes; got features=0"),
            (lambda: make(()), fp.ShapeError, "one or more"),
            (lambda: make((1, 2, 2), event_dim=1), fp.ShapeError, r"features=\(1, 2, 2\).*got 1"),
            (lambda: make("3"), TypeError, "features"),
            (lambda: make(3, event_dim=1.0), TypeError, "event_dim"),
            (lambda: make(3, levels=1), ValueError, "at least 2; got 1"),
            (lambda: make(3, levels=2.0), TypeError, "levels"),
            (lambda: make(3, low=1), ValueError, "low < high; got 1 and 1.0"),
            (lambda: make(3, high=math.inf), ValueError, "finite"),
            (lambda: make(3)(torch.rand(4, 2)), fp.ShapeError, "expects inputs"),
            (lambda: make(3)(torch.full((4, 3), torch.nan)), fp.NonFiniteError, "NaN"),
        ):
            with pytest.raises(error, match=message):
                call()
