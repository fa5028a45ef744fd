"""Noise of evaluation: a function of the row, smooth, and independent from row to row."""

import copy
import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import flowplug as fp
from cases import small_mlp
from flowplug.logdet._field import Field
from flowplug.testing import z_test

ESTIMATES = {
    "Krylov": fp.Krylov(),
    "converged": fp.Krylov(terms=fp.Converged(1e-6)),
    "PowerSeries": fp.PowerSeries(terms=fp.Roulette(fp.Geometric(0.4), exact=2)),
    "Gaussian": fp.Krylov(probes=fp.Gaussian(), terms=fp.Truncated(6)),
    "Orthogonal": fp.Krylov(probes=fp.Orthogonal(samples=2), terms=fp.Truncated(6)),
    "Recompute": fp.Krylov(gradient=fp.Recompute()),
}


def evaluated(estimate, *, chunk_size=2**23, features=6):
    g = small_mlp(features, bound=0.7)
    return fp.ResidualTransform(g, logdet=estimate, eval_logdet=estimate, chunk_size=chunk_size).eval()


@pytest.mark.parametrize("name", ESTIMATES)
def test_the_estimate_of_a_row_is_its_own(name):
    """Whatever other rows there are, however they are cut, with and without a graph, forward and back."""
    transform, x = evaluated(ESTIMATES[name], chunk_size=4 * 8), torch.randn(9, 6)
    y, wanted = transform(x)
    tolerance = 1e4 * torch.finfo(x.dtype).eps
    close = {"atol": tolerance, "rtol": tolerance}
    torch.testing.assert_close(transform(x)[1], wanted, **close)
    with torch.no_grad():
        torch.testing.assert_close(transform(x)[1], wanted, **close)
        torch.testing.assert_close(-transform.inverse(y)[1], wanted, atol=30 * tolerance, rtol=30 * tolerance)
        torch.testing.assert_close(transform(x.flip(0))[1].flip(0), wanted, **close)
    torch.testing.assert_close(torch.cat([transform(rows)[1] for rows in x.split(2)]), wanted, **close)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_errors_of_rows_are_independent(scale):
    """So that the noise of a mean over batches is that of a row over sqrt(rows), in any units; at 5 standard errors."""
    errors = []
    with torch.no_grad():
        for _ in range(40):
            transform, x = evaluated(fp.Krylov(terms=fp.Truncated(6), control=None)), scale * torch.randn(400, 6)
            ladj = torch.cat([transform(rows)[1] for rows in x.split(20)])
            transform.eval_logdet = fp.ExactLogDet()
            errors.append(ladj - transform(x)[1])
    table = torch.stack(errors)
    means, due = table.mean(1), float(table.std()) / math.sqrt(400)
    ratio = float(means.square().mean()) / due**2  # chi-squared of 40 degrees, over 40
    assert abs(ratio - 1) < 5 * math.sqrt(2 / 40)


def test_unbiased_over_seeds():
    transform, x = evaluated(fp.Krylov()), torch.randn(5, 6)
    transform.eval_logdet, exact = fp.ExactLogDet(), None
    with torch.no_grad():
        exact = transform(x)[1]
        transform.eval_logdet = fp.Krylov()

        def draw():
            transform.noise_seed.random_(2**24)
            return [transform(x)[1]]

        z_test("ladj", (draw() for _ in range(600)), [exact])


def test_moves_with_x():
    transform, x = evaluated(fp.Krylov(terms=fp.Converged(1e-6))), torch.randn(50, 6, dtype=torch.float64)
    transform.double()
    direction = torch.nn.functional.normalize(torch.randn_like(x), dim=1)
    with torch.no_grad():
        steps = [float((transform(x + h * direction)[1] - transform(x)[1]).abs().max()) for h in (1e-3, 1e-6)]
    assert steps[1] < 2e-3 * steps[0] < 1e-3


@pytest.mark.parametrize(
    "like", [torch.zeros(3, 4), torch.full((3, 4), 1e30), torch.full((3, 4), 1e-30), torch.ones(0, 4)]
)
def test_any_row_has_numbers(like):
    waves = Field(like.float(), None).waves(torch.Size((2, *like.shape)))
    assert waves.shape == (2, *like.shape)
    assert waves.isfinite().all()


def test_numbers_have_the_identity_as_second_moment():
    def moment():
        waves = Field(rows, None).waves(torch.Size((1, *rows.shape)))[0]
        return [torch.einsum("bi,bj->bij", waves, waves)]

    rows = torch.randn(3, 4)
    z_test("second moment", (moment() for _ in range(2000)), [torch.eye(4).expand(3, 4, 4)])


class TestFixedNoise:
    def test_follows_x_with_its_derivative(self):
        """As samplers need; by central differences of an estimate whose gradient is no estimate of its own."""
        transform, x = evaluated(fp.Krylov()).double(), torch.randn(4, 6, dtype=torch.float64)
        transform.eval_logdet = fp.PowerSeries(terms=fp.Truncated(40), gradient=fp.Autograd())
        direction, h = torch.randn_like(x), 1e-6
        with fp.fixed_noise(1):
            at = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(transform(at)[1].sum(), at)
            up, down = (float(transform(x + s * h * direction)[1].detach().sum()) for s in (1, -1))
        wanted = float((slope * direction).sum())
        assert abs((up - down) / (2 * h) - wanted) < 1e-5 * (1 + abs(wanted))

    def test_does_not_depend_on_how_rows_are_cut(self):
        transform, x = evaluated(fp.Krylov(), chunk_size=4 * 8), torch.randn(9, 6)
        with fp.fixed_noise(2):
            wanted = transform(x)[1].detach()
            with torch.no_grad():
                torch.testing.assert_close(transform(x)[1], wanted)

    def test_copies_have_noise_of_their_own(self):
        transform, x = evaluated(fp.Krylov()), torch.randn(2, 6)
        twins = [copy.deepcopy(transform) for _ in range(2)]
        twins.append(copy.deepcopy(twins[0]))
        with fp.fixed_noise(0):
            values = torch.stack([module(x)[1] for module in (transform, *twins)])
        assert len(values.unique(dim=0)) == 4
        torch.testing.assert_close(twins[0](x)[1], transform(x)[1])

    @pytest.mark.parametrize("seed", [2**64, -1, 0, 10**30])
    def test_any_integer(self, seed):
        with fp.fixed_noise(seed):
            assert evaluated(fp.Krylov())(torch.randn(2, 6))[1].isfinite().all()

    @pytest.mark.parametrize("seed", [1.5, "0", None, True])
    def test_nothing_else(self, seed):
        with pytest.raises(TypeError, match="must be an integer"), fp.fixed_noise(seed):
            pass

    @pytest.mark.parametrize("reentrant", [True, False])
    @pytest.mark.parametrize("condition", [lambda: fp.fixed_noise(0), fp.no_logdet])
    def test_checkpointing_repeats_the_pass_under_its_conditions(self, condition, reentrant):
        transform, x, results = evaluated(fp.Krylov()).train(), torch.randn(4, 6, requires_grad=True), []
        for checkpointed in (False, True):
            transform.zero_grad()
            with condition():
                y, ladj = checkpoint(transform, x, use_reentrant=reentrant) if checkpointed else transform(x)
            (ladj.sum() + y.square().sum()).backward()
            results.append([ladj.detach(), *(p.grad.clone() for p in transform.parameters() if p.grad is not None)])
        assert all(map(torch.equal, *results))
