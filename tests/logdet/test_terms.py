"""How many terms: weighted for what they skip, row by row."""

import math
from dataclasses import dataclass

import pytest
import torch

import flowplug as fp
from helpers import Bounded, Scale


def test_truncation_is_biased_within_its_bound():
    a, n, size = 0.9, 3, 2
    transform = fp.ResidualTransform(Scale(a), logdet=fp.PowerSeries(terms=fp.Truncated(n)))
    error = abs(float(transform(torch.randn(1, size))[1].detach()) - size * math.log1p(a))
    bound = -size * (math.log(1 - a) + sum(a**k / k for k in range(1, n + 1)))
    assert 0.01 < error <= bound


@pytest.mark.parametrize("group", [1, 4, 100])
@pytest.mark.parametrize("length", [fp.Geometric(0.5), fp.Certified(), fp.Poisson(2.0)])
def test_rows_continue_as_often_as_they_are_weighted_for(length, group):
    generator, terms = torch.Generator("cpu").manual_seed(0), fp.Roulette(length, exact=2, group=group)
    counts = torch.zeros(5000, 6, device="cpu", dtype=torch.float64)
    for row in counts:
        for k, (weight, count) in enumerate(terms.schedule(11, Bounded(0.6), generator)):
            if k < len(row):
                row[k] = min(count, 11) * weight
    # Each row has term k with probability 1 / weight: 11 rows on average; a z-test at 5 standard errors.
    error = (counts.mean(0) - 11).abs()
    assert not counts[:, :2].std(0).any()
    assert bool((error <= 5 * counts.std(0) / math.sqrt(5000) + 1e-12).all())


def test_single_rows_are_sampled_systematically():
    terms, generator = fp.Roulette(fp.Geometric(0.5), exact=1, group=1), torch.Generator("cpu").manual_seed(0)
    for _ in range(20):
        counts = [count for _, count in terms.schedule(16, Bounded(0.9), generator)]
        assert counts[:5] == [16, 8, 4, 2, 1]


def test_counts_are_fixed_as_long_as_a_group_is_left():
    terms, lengths = fp.Roulette(fp.Geometric(0.7), exact=1, group=10), set()
    for seed in range(20):
        steps = list(terms.schedule(100, Bounded(0.9), torch.Generator("cpu").manual_seed(seed)))
        assert steps[:2] == [(1.0, 100), (100 / 30, 30)]
        assert {count for _, count in steps[2:]} <= {10}
        lengths.add(len(steps))
    assert len(lengths) > 1


@dataclass(frozen=True)
class ByTheBound:
    """A user's own: as many terms as bring the bias of a term below a hundredth."""

    rtol = 0.0

    def schedule(self, count, branch, generator):
        return [(1.0, count)] * math.ceil(math.log(0.01) / math.log(float(branch.lipschitz_bound())))

    def decay(self, bound):
        return 1.0


@pytest.mark.parametrize(("bound", "n"), [(0.2, 3), (0.5, 7)])
@pytest.mark.parametrize("make", [fp.Krylov, fp.PowerSeries])
def test_users_terms_see_the_branch_of_the_pass(make, bound, n, eps):
    g, x = Scale(bound), torch.randn(5, 9)
    ladjs = [
        make(terms=terms)(fp.Branch.of(g, None), x, fp.Noise(torch.tensor(3)))[1]
        for terms in (ByTheBound(), fp.Truncated(n))
    ]
    torch.testing.assert_close(*ladjs, atol=10 * eps, rtol=0)


def test_no_rows():
    assert list(fp.Roulette(fp.Geometric(0.7), exact=1).schedule(0, Bounded(0.9), None)) == [(1.0, 0)]


def test_every_row_is_as_likely_to_continue():
    """Marks the row that has the second term, whose weight is 8, and not the third: a chi-square test."""
    transform = fp.ResidualTransform(
        Scale(0.3), logdet=fp.PowerSeries(terms=fp.Roulette(fp.Geometric(0.9), exact=1, group=1))
    )
    x, marks = torch.zeros(8, 1), torch.zeros(8)
    for _ in range(2000):
        marks += transform(x)[1] < 0
    expected = marks.sum() / 8
    assert 1790 < float(marks.sum()) < 1890  # 1,840 expected, +- 12
    assert float(((marks - expected) ** 2 / expected).sum()) < 30  # exceeded with probability 1e-4


def test_one_row():
    generator = torch.Generator("cpu").manual_seed(1)
    steps = list(fp.Roulette(fp.Geometric(0.5), exact=2).schedule(1, Bounded(0.9), generator))
    assert steps == [(1.0, 1), (1.0, 1), *((2.0**m, 1) for m in range(1, len(steps) - 1))]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fp.Truncated(0), "at least 1; got 0"),
        (lambda: fp.Roulette(fp.Geometric(0.5), exact=-1), "at least 0; got -1"),
        (lambda: fp.Roulette(fp.Geometric(0.5), group=0), "at least 1; got 0"),
        (lambda: fp.Converged(0.0), "positive; got 0.0"),
        (lambda: fp.Converged(max_terms=0), "at least 1; got 0"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Once:
    """Terms that can be gone through once."""

    rtol = 0.0

    def schedule(self, count, branch, generator):
        yield from [(1.0, count)] * 4

    def decay(self, bound):
        return 1.0


def test_a_schedule_that_is_used_up_is_refused():
    transform = fp.ResidualTransform(fp.LipschitzMLP(3), logdet=fp.PowerSeries(terms=Once()))
    with pytest.raises(TypeError, match="return a list, not a generator"):
        transform(torch.randn(4, 3))
