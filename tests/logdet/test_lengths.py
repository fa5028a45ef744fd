"""How long a roulette goes on."""

import pytest

import flowplug as fp
from helpers import Bounded


def test_certified_length_follows_the_weights_in_use():
    assert fp.Certified().survival(3, Bounded(0.5)) == 0.125
    with pytest.raises(fp.LipschitzError, match=r"below 1; it is 1\.5"):
        fp.Certified().survival(1, Bounded(1.5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fp.Geometric(1.0), r"in \(0, 1\); got 1.0"),
        (lambda: fp.Poisson(0.0), "positive; got 0.0"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()
