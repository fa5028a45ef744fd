"""Marginal Gaussianization: from any column to normal scores and back, from few rows and many, however it runs."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch.distributions import Normal
from torch.optim.swa_utils import AveragedModel

import flowplug as fp

ROWS = 4000


def mixed(rows):
    return torch.where(torch.rand(rows) < 0.5, torch.randn(rows), 20 + 3 * torch.randn(rows))


COLUMNS = {
    "normal": torch.randn,
    "log-normal": lambda rows: torch.randn(rows).exp(),
    "uniform": torch.rand,
    "Cauchy": lambda rows: torch.tan(math.pi * (torch.rand(rows) - 0.5)),
    "bimodal": mixed,
    "90 % one value": lambda rows: torch.where(torch.rand(rows) < 0.9, 7.0, 50 * torch.rand(rows)),
    "99.99 % one value": lambda rows: torch.where(torch.arange(rows) == 3, 7.0, 1e6),
    "three values": lambda rows: torch.randint(3, (rows,)).to(torch.get_default_dtype()),
    "constant": lambda rows: torch.full((rows,), 1e6 / 3),
    "tiny": lambda rows: 1e-30 * torch.randn(rows).exp(),
    "huge": lambda rows: 1e30 * torch.randn(rows).exp(),
}
COLUMN = pytest.mark.parametrize("column", COLUMNS)


def table(*columns, rows=ROWS):
    return torch.stack([COLUMNS[column](rows) for column in columns], 1)


def started(x, **keywords):
    marginals = fp.MarginalGaussianization(x.shape[1], **keywords)
    marginals.start(x)
    return marginals


def log_likelihood(transform, x):
    y, ladj = transform(x)
    return float((ladj + Normal(0.0, 1.0).log_prob(y).sum(1)).mean().detach())


class TestColumns:
    @COLUMN
    @pytest.mark.parametrize("share", [None, 0.0, 0.5, 1.0])
    def test_forth_and_back(self, column, share, eps):
        x = torch.cat([table(column), table(column)], 1)
        marginals = started(x, share=share)
        y, ladj = marginals(x)
        back, inverse_ladj = marginals.inverse(y)
        assert bool(y.isfinite().all())
        assert bool(ladj.isfinite().all())
        torch.testing.assert_close((back / marginals.scale), x / marginals.scale, rtol=100 * eps, atol=1e4 * eps)
        # Where a column is nearly discrete, slopes change a thousandfold within rounding's reach.
        torch.testing.assert_close(inverse_ladj, -ladj, atol=1e7 * eps, rtol=1e4 * eps)

    @pytest.mark.parametrize("column", ["normal", "log-normal", "uniform", "Cauchy", "tiny", "huge"])
    def test_scores_are_normal(self, column):
        """Kolmogorov's distance of fresh rows, of which 1.63 / sqrt(n) is the 99 % point were the quantiles exact."""
        x = table(column, rows=20_000)
        y = started(x)(table(column, rows=20_000))[0].detach().flatten().sort().values
        distance = (Normal(0.0, 1.0).cdf(y) - torch.arange(len(y)) / len(y)).abs().max()
        assert distance < 1.63 * math.sqrt(2 / len(y)) + 0.005

    @COLUMN
    def test_far_rows_stay_finite_and_come_back(self, column):
        x = table(column)
        marginals = started(x)
        spread = x.std().nan_to_num(posinf=1e30) or 1.0
        far = x.median() + spread * torch.tensor([[-1e6], [1e6]])
        y, ladj = marginals(far)
        assert bool(y.isfinite().all())
        assert bool(ladj.isfinite().all())
        torch.testing.assert_close(marginals.inverse(y)[0], far, rtol=1e-5, atol=0)

    @pytest.mark.parametrize("column", ["Cauchy", "log-normal"])
    def test_no_row_of_a_start_has_a_score_beyond_what_the_docstring_says(self, column):
        x = table(column)
        x[0] = 1e12
        marginals = started(x, share=1.0)
        y = marginals(x)[0].detach()
        beyond = (y > 2.69).sum()  # rows beyond the knot, some by less than rounding
        assert 2.7 < float(y.max()) <= 2.7 + float(beyond + 4) ** 0.5 + 1e-3

    def test_heavy_tails_cost_other_rows_a_bounded_number_of_nats(self):
        x = table("Cauchy", rows=20_000)
        exact = float(torch.distributions.Cauchy(0.0, 1.0).log_prob(x).mean())
        assert exact - log_likelihood(started(x[:10_000]), x[10_000:]) < 0.2

    def test_a_constant_column_is_centred_and_left_at_its_scale(self):
        x = table("constant", "normal")
        y, _ = started(x)(x)
        torch.testing.assert_close(y[:, 0], torch.zeros(ROWS), atol=1.0, rtol=0)
        alone, alone_ladj = started(x[:, :1])(x[:, :1] + torch.tensor([[0.0], [16.0]]).repeat(ROWS // 2, 1))
        torch.testing.assert_close(alone[1] - alone[0], torch.tensor([16.0]))
        torch.testing.assert_close(alone_ladj, torch.zeros(ROWS), atol=1e-5, rtol=0)

    @pytest.mark.slow
    @pytest.mark.usefixtures("users_defaults")
    def test_a_million_points_come_back_to_rounding(self):
        x = torch.stack([torch.randn(1_000_000), torch.randn(1_000_000).exp(), mixed(1_000_000)], 1)
        marginals = started(x[:10_000], share=1.0)
        with torch.no_grad():
            y, ladj = marginals(x)
            back, inverse_ladj = marginals.inverse(y)
            exact = copy.deepcopy(marginals).double()
            slope = exact(x.double() + 1e-6)[0] - exact(x.double())[0]
        units = torch.finfo(torch.float32).eps * (x.abs() + marginals.scale + 1e-6 * y.abs() / slope)
        assert float(((back - x).abs() / units).max()) < 20
        torch.testing.assert_close(inverse_ladj, -ladj, atol=1e-3, rtol=0)


def whitened(x, share=None, fresh=None):
    """Log-likelihood, in nats, of a start with a whitening behind."""
    flow = fp.ComposedTransform(fp.MarginalGaussianization(x.shape[1], share=share), fp.Whitening(x.shape[1]))
    flow.start(x)
    return log_likelihood(flow, x if fresh is None else fresh)


class TestTies:
    """An atom lies in the middle of a steep piece, not on its edge."""

    @pytest.mark.parametrize("share", [0.5, 0.1])
    def test_two_values(self, share):
        x = (torch.rand(ROWS, 1) < share).to(torch.get_default_dtype())
        y, ladj = started(x)(x)
        low, high = y[x == 0], y[x == 1]
        # The mean score of each half, about.
        torch.testing.assert_close(low[0], Normal(0.0, 1.0).icdf((1 - x.mean()) / 2), atol=0.15, rtol=0)
        torch.testing.assert_close(high[0], Normal(0.0, 1.0).icdf(1 - x.mean() / 2), atol=0.25, rtol=0)
        assert bool((ladj > 2).all())

    def test_gradients_at_an_atom_are_of_ordinary_size(self):
        x = (torch.rand(ROWS, 1) < 0.5).to(torch.get_default_dtype())
        marginals = started(x)
        y, ladj = marginals(x)
        (y.square().sum(1) / 2 - ladj).mean().backward()
        assert max(float(parameter.grad.abs().max()) for parameter in marginals.parameters()) < 100

    @pytest.mark.parametrize("values", [10, 256])
    def test_integers(self, values):
        """Nats of the atoms, each as wide as the distance between them, are those of the discrete entropy."""
        x = torch.randint(values, (ROWS, 1)).to(torch.get_default_dtype())
        noisy = x + torch.rand(ROWS, 1) - 0.5
        assert -math.log(values) - log_likelihood(started(noisy), noisy) < 0.05
        assert log_likelihood(started(x), x) > log_likelihood(started(noisy), x) - 0.05


class TestOutliers:
    @pytest.mark.parametrize("row", [0, 1])
    @pytest.mark.parametrize("value", [1e4, 1e12, 1e30])
    def test_one_row_does_not_collapse_the_others(self, row, value):
        x = torch.randn(1000, 3)
        x[row, 0] = value
        y = started(x)(torch.randn(1000, 3))[0].detach()
        torch.testing.assert_close(y.std(0), torch.ones(3), atol=0.15, rtol=0)

    def test_nor_do_values_that_stand_for_none(self):
        x = torch.randn(ROWS, 2)
        x[torch.rand(ROWS) < 0.02, 0] = -9999.0
        y = started(x)(torch.randn(ROWS, 2))[0].detach()
        torch.testing.assert_close(y.std(0), torch.ones(2), atol=0.15, rtol=0)

    def test_values_beyond_the_range_of_the_dtype(self):
        marginals = started(1e-3 * torch.randn(1000, 1)).float().eval()
        y, _ = marginals(torch.tensor([[1e36], [-1e36]], dtype=torch.float32))
        assert bool((y.abs() > 1e30).all())
        assert y[0] > 0 > y[1]


class TestShare:
    def test_independent_shapes_are_worth_all_of_the_way(self):
        x = table("log-normal", "bimodal", "Cauchy")
        assert whitened(x) == whitened(x, 1.0)

    @pytest.mark.parametrize("constants", [2, 20])
    def test_constant_features_have_no_say(self, constants):
        few = torch.full((ROWS, constants), 3.0)
        shapes, ties = torch.randn(ROWS, 5).exp(), torch.randn(ROWS, 5) * torch.randn(ROWS, 1).exp()
        assert started(torch.cat([shapes, few], 1)).strength == started(shapes).strength == 1
        assert started(torch.cat([ties, few], 1)).strength == started(ties).strength < 0.5

    def test_rows_in_pairs(self):
        x = torch.stack([torch.zeros(1000, 3), torch.randn(1000, 3).exp()], 1).reshape(2000, 3)
        assert whitened(x) > whitened(x, 0.0) + 1

    def test_what_rows_share_is_not_bent(self):
        """Every row has a spread of its own, which normal scores of its entries would hide."""
        x = torch.randn(ROWS, 10) @ torch.randn(10, 10) * torch.randn(ROWS, 1).exp()
        y, _ = started(x)(x)
        assert whitened(x) == whitened(x, 0.0)
        slope = (y[1] - y[0]) / (x[1] - x[0])
        torch.testing.assert_close(y - y[0], slope * (x - x[0]), atol=1e-2, rtol=1e-3)
        torch.testing.assert_close(y.detach().clamp(-10, 10).std(0), torch.ones(10), atol=0.4, rtol=0)

    def test_training_counts_by_the_share(self):
        for share in (0.0, 0.5, 1.0):
            marginals, x = started(table("normal"), share=share), torch.zeros(1, 1)
            before = marginals(x)[0]
            with torch.no_grad():
                marginals.shift.add_(2.0)
            torch.testing.assert_close(marginals(x)[0] - before, torch.full((1, 1), 2 * share))
            marginals.log_slopes.data.fill_(100.0)
            changed = marginals._spline().slope / marginals.start_slopes.exp()
            torch.testing.assert_close(changed, torch.full_like(changed, math.exp(5 * share)), rtol=1e-4, atol=0)

    def test_few_rows_go_a_quarter_of_the_way(self):
        assert started(table("log-normal", "normal", rows=20)).strength == 0.25

    def test_one_feature_goes_all_of_the_way(self):
        x = table("uniform")
        assert whitened(x) == whitened(x, 1.0)

    @pytest.mark.parametrize("features", [600, 2])
    def test_copies_and_more_features_than_rows(self, features):
        x = table("log-normal", rows=300) * (1 + 1e-3 * torch.randn(300, features))
        y, ladj = started(x)(x)
        assert bool(y.isfinite().all())
        assert bool(ladj.isfinite().all())


class TestFewRows:
    @pytest.mark.parametrize("rows", [2, 3, 5, 16, 33, 64])
    def test_fresh_rows_lose_little(self, rows):
        """Against a fitted normal distribution, of normal data."""
        x, fresh = torch.randn(rows, 3), torch.randn(2000, 3)
        mean, deviation = x.mean(0), x.std(0, correction=0)
        fitted = float(Normal(mean, deviation).log_prob(fresh).sum(1).mean())
        assert log_likelihood(started(x), fresh) > fitted - 0.3

    def test_one_row_gives_no_scale(self):
        marginals = fp.MarginalGaussianization(2)
        with pytest.warns(fp.StartWarning, match=r"MarginalGaussianization has met 1 of the 256 rows"):
            y, ladj = marginals(torch.tensor([[1e6, -3.0]]))
        torch.testing.assert_close(y, torch.zeros(1, 2), atol=1.0, rtol=0)
        torch.testing.assert_close(ladj, torch.zeros(1), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("batches", [[300], [100, 200], [1, 255, 44], [100, 100, 100]])
    def test_small_batches_count_before_they_are_mapped(self, batches):
        marginals, whole, x = fp.MarginalGaussianization(3), fp.MarginalGaussianization(3), torch.randn(300, 3).exp()
        met = 0
        for batch in x.split(batches):
            marginals(batch)
            if met < 256:
                met += len(batch)
        whole.start(x[:met])
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(marginals.state_dict()[name], value)

    def test_a_start_that_was_saved_half_way_goes_on(self):
        marginals, other, x = fp.MarginalGaussianization(3), fp.MarginalGaussianization(3), torch.randn(300, 3).exp()
        marginals(x[:100])
        other.load_state_dict(marginals.state_dict())
        for each in (marginals, other):
            each(x[100:])
        assert marginals.started == 1
        assert all(torch.equal(other.state_dict()[name], value) for name, value in marginals.state_dict().items())

    def test_graphs_outlive_the_next_batch(self):
        marginals, x = fp.MarginalGaussianization(3), torch.randn(300, 3).exp()
        losses = [marginals(x[:100])[0].sum(), marginals(x[100:])[1].sum(), marginals.inverse(x)[0].sum()]
        sum(losses).backward()


class TestImages:
    def test_a_spline_for_every_pixel(self):
        x = torch.rand(300, 1, 3, 4) ** torch.linspace(0.2, 5, 12).reshape(1, 3, 4)
        marginals = fp.MarginalGaussianization((1, 3, 4), share=1.0)
        y, ladj = marginals(x)
        flat = fp.MarginalGaussianization(12, share=1.0)
        torch.testing.assert_close((y.flatten(1), ladj), flat(x.flatten(1)))
        torch.testing.assert_close(marginals.inverse(y)[0], x, atol=1e-5, rtol=1e-4)

    def test_a_spline_for_every_channel(self):
        x = torch.rand(300, 2, 5, 4) ** torch.tensor([0.2, 5.0]).reshape(2, 1, 1)
        marginals = fp.MarginalGaussianization(2, event_dim=3, share=1.0)
        y, ladj = marginals(x)
        values = x.movedim(1, -1).reshape(-1, 2)
        flat = started(values, share=1.0)
        scores, ladjs = flat(values)
        torch.testing.assert_close((y.movedim(1, -1).reshape(-1, 2), ladj), (scores, ladjs.reshape(300, 20).sum(1)))

    def test_few_images_at_once_give_all_of_their_values(self):
        x = torch.rand(2, 3, 32, 32) ** 3
        marginals = fp.MarginalGaussianization(3, event_dim=3)
        marginals.start(x)
        torch.testing.assert_close(marginals(x)[0].std((0, 2, 3)).detach(), torch.ones(3), atol=0.1, rtol=0)

    def test_no_column_of_pixels_stands_for_all(self):
        x = torch.zeros(2048, 1, 32, 32)
        x[..., 4:-4, 4:-4] = torch.rand(2048, 1, 24, 24)
        marginals = fp.MarginalGaussianization(1, event_dim=3)
        marginals.start(x)
        inside = marginals(x[:500])[0][..., 4:-4, 4:-4].detach()
        assert float(inside.mean()) > 0.5
        assert float(marginals.scale) < 1

    def test_images_that_come_one_by_one_give_a_value_each(self):
        x = torch.arange(200.0).repeat(100, 1).reshape(100, 1, 10, 20) + 1000 * torch.rand(100, 1, 1, 1)
        marginals = fp.MarginalGaussianization(1, event_dim=3)
        marginals(x[:1])
        marginals(x[1:])
        places = marginals.rows[:100, 0] % 1000
        assert len(places.unique()) == 100
        assert not marginals.rows[100:].any()

    def test_a_start_on_many_values_thins_them(self):
        marginals = fp.MarginalGaussianization(1, event_dim=3)
        marginals.start(torch.randn(300, 1, 40, 40).exp())
        assert bool(marginals.start_widths.isfinite().all())


class TestRunning:
    def test_is_the_identity_before(self):
        marginals, x = fp.MarginalGaussianization(3).eval(), 5 * torch.randn(100, 3)
        y, ladj = marginals(x)
        torch.testing.assert_close(y, x)
        torch.testing.assert_close(ladj, torch.zeros(100), atol=1e-5, rtol=0)

    def test_reset_and_start_by_name(self):
        marginals, x = fp.MarginalGaussianization(3), torch.randn(300, 3).exp()
        fresh = copy.deepcopy(marginals.state_dict())
        marginals.eval().start(x)
        with torch.no_grad():
            for parameter in marginals.parameters():
                parameter.add_(0.1)
        kept = copy.deepcopy(marginals.state_dict())
        marginals.train()(7 * x)
        assert all(torch.equal(kept[name], value) for name, value in marginals.state_dict().items())
        marginals.reset()
        assert all(torch.equal(fresh[name], value) for name, value in marginals.state_dict().items())

    def test_training_that_starts_with_the_inverse_keeps_the_map(self):
        marginals, y = fp.MarginalGaussianization(3), torch.randn(300, 3).requires_grad_()
        with pytest.warns(fp.StartWarning, match="was inverted in train mode"):
            x, _ = marginals.inverse(y)
        torch.testing.assert_close(marginals(x.detach())[0], y.detach())

    @pytest.mark.parametrize("average", [lambda m: AveragedModel(m, use_buffers=True), copy.deepcopy])
    def test_what_is_averaged_is_invertible(self, average):
        marginals, x = fp.MarginalGaussianization(3), torch.randn(300, 3).exp()
        marginals.start(x)
        other = average(marginals)
        marginals.start(100 - 7 * x)
        if isinstance(other, AveragedModel):
            other.update_parameters(marginals)
            other.update_parameters(marginals)
            other = other.module
        else:
            for name, value in other.state_dict().items():
                value.lerp_(marginals.state_dict()[name], 0.5)
        y, ladj = other(x)
        jacobian = torch.autograd.functional.jacobian(lambda v: other(v)[0], x[0])
        torch.testing.assert_close(ladj[0], torch.linalg.slogdet(jacobian).logabsdet, atol=1e-4, rtol=0)
        torch.testing.assert_close(other.inverse(y)[0], x, atol=1e-3, rtol=1e-3)

    def test_copies(self):
        x = torch.randn(300, 3).exp()
        marginals = started(x)
        wanted = marginals(x)
        loaded = fp.MarginalGaussianization(3)
        loaded.load_state_dict(marginals.state_dict())
        with torch.device("meta"):
            assigned = fp.MarginalGaussianization(3)
        assigned.load_state_dict(marginals.state_dict(), assign=True)
        for other in (loaded, assigned.to(x.device), copy.deepcopy(marginals), pickle.loads(pickle.dumps(marginals))):
            other(7 * x)
            assert torch.equal(other(x)[0], wanted[0])

    def test_inside_torch_func(self):
        marginals, x = fp.MarginalGaussianization(3), torch.randn(300, 3).exp()
        with pytest.warns(fp.StartWarning, match="cannot start from data inside a transform of torch.func"):
            torch.func.grad(lambda x: marginals(x)[0].square().sum())(x)
        assert marginals.started == 0
        marginals(x)
        rows, _ = torch.vmap(marginals)(x)
        torch.testing.assert_close(rows, marginals(x)[0])

    @pytest.mark.usefixtures("users_defaults")
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype):
        marginals, x = fp.MarginalGaussianization(3).to(dtype), torch.randn(1000, 3).exp().to(dtype)
        y, ladj = marginals(x)
        assert (y.dtype, ladj.dtype) == (dtype, dtype)
        torch.testing.assert_close(marginals.inverse(y)[0].float(), x.float(), atol=0.05, rtol=0.05)
        torch.testing.assert_close(y.float().std(0).detach(), torch.ones(3), atol=0.1, rtol=0)

    @pytest.mark.usefixtures("users_defaults")
    def test_large_offset(self):
        x = 1e6 + torch.randn(1000, 2).exp()
        assert bool((started(x, share=1.0)(x)[0].std(0) - 1).abs().max() < 0.1)

    def test_trains(self):
        x = torch.randn(2000, 2).exp()
        marginals = fp.MarginalGaussianization(2, share=0.25)
        marginals.start(x)
        before, optimizer = log_likelihood(marginals, x), torch.optim.Adam(marginals.parameters(), 0.03)
        for _ in range(60):
            y, ladj = marginals(x)
            optimizer.zero_grad()
            (y.square().sum(1) / 2 - ladj).mean().backward()
            optimizer.step()
        exact = float(torch.distributions.LogNormal(0.0, 1.0).log_prob(x).sum(1).mean())
        assert exact - log_likelihood(marginals, x) < 0.5 * (exact - before)

    @pytest.mark.parametrize("size", [1.0, 5.0, 100.0])
    def test_whatever_is_written_on_parameters_is_a_map(self, size, eps):
        marginals, x = started(torch.randn(300, 3).exp()), torch.randn(300, 3).exp()
        with torch.no_grad():
            for parameter in marginals.parameters():
                parameter.copy_(size * torch.randn_like(parameter))
            y, ladj = marginals(x)
            back, _ = marginals.inverse(y)
        assert bool(ladj.isfinite().all())
        order = x.argsort(0)
        assert bool((y.gather(0, order).diff(dim=0) >= -1e3 * eps * y.abs().max()).all())
        torch.testing.assert_close(marginals(back)[0], y, atol=1e5 * eps * float(y.abs().max()), rtol=0)

    def test_shows_what_it_is(self):
        assert repr(fp.MarginalGaussianization((1, 4, 4), share=0.5)) == (
            "MarginalGaussianization((1, 4, 4), knots=25, share=0.5)"
        )

    def test_who_asks_for_a_start_from_few_rows_is_not_told_of_more(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            started(torch.randn(10, 2))

    @pytest.mark.parametrize("rows", [1, 3])
    def test_no_more_rows_than_it_needs_are_kept(self, rows):
        marginals = fp.MarginalGaussianization(2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fp.StartWarning)  # rows are few on purpose
            marginals(torch.randn(rows, 2))
        assert bool(marginals.rows[:rows].all())
        marginals(torch.randn(500, 2))
        assert not marginals.rows.any()


@pytest.mark.parametrize("far", [1e6, 1e12])
@pytest.mark.parametrize("share", [0.02, 0.3])
def test_values_that_stand_for_missing_ones(far, share):
    """A heap so far out that knots around it are closer than rounding."""
    x = torch.where(torch.rand(2000, 2) < share, far, torch.randn(2000, 2))
    transform = fp.MarginalGaussianization(2)
    y, ladj = transform(x)
    (y.square().sum() / 2 - ladj.sum()).backward()
    back, inverse_ladj = transform.eval().inverse(y)
    assert all(bool(part.isfinite().all()) for part in (y, ladj, back, inverse_ladj))
    assert all(bool(part.grad.isfinite().all()) for part in transform.parameters())
    assert bool((transform._spline().x.diff() > 0).all())


class TestArguments:
    def test_refusals(self):
        make = fp.MarginalGaussianization
        with pytest.raises(fp.ShapeError, match="needs positive sizes; got features=0"):
            make(0)
        with pytest.raises(
            TypeError, match=r"MarginalGaussianization\(features=\.\.\.\) must be an integer or a sequence"
        ):
            make(2.5)
        with pytest.raises(ValueError, match="odd number of knots, at least 3; got 8"):
            make(2, knots=8)
        with pytest.raises(ValueError, match=r"share=\.\.\.\) must be in \[0, 1\]; got 2"):
            make(2, share=2)
        with pytest.raises(fp.ShapeError, match=r"event_dim of at least the sizes in features=\(2, 3\).*got 1"):
            make((2, 3), event_dim=1)
        with pytest.raises(fp.ShapeError, match="expects inputs"):
            make(3)(torch.randn(5, 2))
        with pytest.raises(fp.NonFiniteError, match="holds 1 NaN"):
            make(2)(torch.tensor([[1.0, torch.nan]]))  # in a start, which waits for a GPU too
        with pytest.raises(fp.ShapeError, match="a start takes at least 2 rows of data; got 1"):
            make(2).start(torch.randn(1, 2))
