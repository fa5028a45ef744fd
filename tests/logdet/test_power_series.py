"""The power series: when its variance is infinite, and what may differentiate it."""

import contextlib

import pytest

import flowplug as fp
from cases import small_mlp


@pytest.mark.parametrize(
    ("logdet", "warns"),
    [
        (fp.PowerSeries(terms=fp.Roulette(fp.Geometric(0.5))), True),
        (fp.PowerSeries(terms=fp.Roulette(fp.Poisson(10.0))), True),
        (fp.PowerSeries(terms=fp.Roulette(fp.Geometric(0.03))), False),
        (fp.PowerSeries(), False),
        (fp.PowerSeries(terms=fp.Truncated(3)), False),
        (fp.PowerSeries(terms=fp.Converged()), False),
        (fp.Krylov(terms=fp.Roulette(fp.Poisson(2.0))), False),
    ],
)
def test_possibly_infinite_variance_warns(logdet, warns):
    expected = pytest.warns(fp.InfiniteVarianceWarning, match="Use Krylov") if warns else contextlib.nullcontext()
    with expected as caught:
        fp.ResidualTransform(small_mlp(), logdet=logdet)
    assert not warns or caught[0].filename == __file__


@pytest.mark.parametrize("gradient", [fp.Autograd(), fp.Recompute(fp.Autograd())])
def test_krylov_has_no_terms_to_differentiate(gradient):
    with pytest.raises(TypeError, match=r"Krylov\(gradient=\.\.\.\) must not be Autograd"):
        fp.Krylov(gradient=gradient)
