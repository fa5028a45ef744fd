"""Probe vectors: their variance."""

import math

import pytest
import torch

import flowplug as fp
from helpers import Coupled, Scale


def test_two_probes_halve_the_variance():
    g, x = Coupled(), torch.randn(2000, 4)
    terms = fp.Truncated(40)
    one, two = (
        fp.ResidualTransform(g, logdet=fp.PowerSeries(terms=terms, probes=fp.Rademacher(samples)))(x)[1].var()
        for samples in (1, 2)
    )
    # Each variance of 2,000 independent rows is known to about 5 %.
    assert 1.6 < float((one / two).detach()) < 2.5


def test_probes_use_less_variance_with_signs():
    """For one coordinate v^2 = 1: Rademacher probes estimate a scalar Jacobian exactly."""
    series = fp.PowerSeries(terms=fp.Truncated(60))
    transform = fp.ResidualTransform(Scale(0.5), logdet=series)
    ladj = transform(torch.randn(5, 1))[1]
    torch.testing.assert_close(ladj, torch.full((5,), math.log(1.5)), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fp.Orthogonal(samples=4).draw(torch.zeros(2, 3), None), "these have 3"),
        (lambda: fp.Rademacher(0), "at least 1; got 0"),
        (lambda: fp.Gaussian(samples=0), "at least 1; got 0"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()
