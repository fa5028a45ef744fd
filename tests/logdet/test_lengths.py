"""How long a roulette goes on."""

from dataclasses import dataclass, field

import pytest
import torch

import flowplug as fp
from cases import small_mlp
from helpers import Bounded


@dataclass(frozen=True)
class Mine:
    """A user's own: as `Certified`, and it keeps what it was asked with."""

    asked: list = field(default_factory=list)

    def survival(self, m, branch=None):
        self.asked.append(branch)
        return float(branch.lipschitz_bound()) ** m

    def decay(self, bound):
        return bound


def test_a_users_length_sees_the_branch_of_the_pass(eps):
    g, x, length = small_mlp(), torch.randn(40, 3), Mine()
    ladjs = []
    for chosen in (length, fp.Certified()):
        branch, terms = fp.Branch.of(g, None), fp.Roulette(chosen, exact=1)
        ladjs.append(fp.PowerSeries(terms=terms)(branch, x, fp.Noise(torch.tensor(3)))[1])
    torch.testing.assert_close(*ladjs, atol=10 * eps, rtol=0)
    assert len({id(branch) for branch in length.asked}) == 1
    assert isinstance(length.asked[0], fp.Branch)


@pytest.mark.parametrize("length", [fp.Geometric(0.3), fp.Geometric(0.3, share=0.5), fp.Poisson(2.0)])
def test_fixed_lengths_are_the_same_for_every_branch(length):
    for m in range(5):
        assert length.survival(m) == length.survival(m, Bounded(0.5)) == length.survival(m, Bounded(0.9))


def test_a_share_of_the_rows_draws_a_number():
    length = fp.Geometric(0.75, share=0.5)
    assert [length.survival(m) for m in range(4)] == [1.0, 0.125, 0.03125, 0.0078125]
    assert length.decay(0.9) == 0.25
    assert sum(length.survival(m) for m in range(1, 99)) == pytest.approx(0.5 * (1 / 0.75 - 1))


def test_certified_needs_a_branch():
    with pytest.raises(fp.LipschitzError, match=r"Certified\(\) takes its survival from the bound of g: pass a branch"):
        fp.Certified().survival(1)


def test_certified_length_follows_the_weights_in_use():
    assert fp.Certified().survival(3, Bounded(0.5)) == 0.125
    with pytest.raises(fp.LipschitzError, match=r"below 1; it is 1\.5"):
        fp.Certified().survival(1, Bounded(1.5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fp.Geometric(1.0), r"in \(0, 1\); got 1.0"),
        (lambda: fp.Geometric(0.5, share=0.0), r"share=\.\.\.\) must be in \(0, 1\]; got 0.0"),
        (lambda: fp.Geometric(0.5, share=1.5), r"in \(0, 1\]; got 1.5"),
        (lambda: fp.Poisson(0.0), "positive; got 0.0"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()
