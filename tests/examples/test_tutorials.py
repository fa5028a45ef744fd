"""What the tutorials fit and compare; CI runs them as a whole."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import flowplug as fp
from benchmarks.models import jacobians, residual_parts
from common import plane
from common.densities import size
from tutorials import dense, estimators, sampling, toy2d


class TestDense:
    def test_images_are_logits_of_dequantised_pixels(self, tmp_path):
        train, val = (torch.randint(256, (n, 3, 2), dtype=torch.uint8).numpy() for n in (400, 9))
        np.savez(tmp_path / "images.npz", train=train, val=val, test=val)
        data, offset = dense.load(tmp_path / "images.npz", "cpu")
        assert data.train.shape == (400, 6)
        torch.testing.assert_close(data.train.std(0, correction=0), torch.ones(6))
        # Back to pixels: the logits lie within one grey value of the image, and their spread is the offset.
        logits = torch.logit((torch.tensor(train).flatten(1) + 0.5) / 256)
        slopes = [torch.stack([a, b]).cov() for a, b in zip(data.train.T, logits.T, strict=True)]
        scales = torch.stack([cov[0, 1] / cov[0, 0] for cov in slopes])
        assert float(scales.log().sum()) == pytest.approx(offset, abs=0.2)

    def test_tables_are_those_of_the_comparison(self, table):
        data, offset = dense.load(table, "cpu")
        assert data.train.shape == (500, 6)
        assert offset == 0

    @pytest.mark.slow
    def test_models_have_as_many_parameters(self):
        makes = dense.models(20, dense.Options(whiten=True), torch.randn(500, 20))
        sizes = {name: size(make()) for name, make in makes.items()}
        assert all(0.85 < count / sizes["dense flow"] <= 1 for count in sizes.values())
        for make in makes.values():
            make()(torch.randn(16, 20)).mean().backward()

    def test_a_table_is_compared(self, table, tmp_path):
        options = dense.Options(data=table, seconds=0.1, only=("dense flow", "zuko: MAF"), out=tmp_path)
        dense.compare(options, table)
        assert (tmp_path / "table.md").read_text().count("\n| ") == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    ["tutorials/torchlip.py --steps 2 --blocks 1", "benchmarks/inverse.py --points 10 --rounds 2 --steps 9"],
)
def test_networks_of_other_libraries_print_no_warning(command):
    script, *options = command.split()
    code = [sys.executable, str(Path(plane.__file__).parents[1] / script), *options]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    assert "Warning" not in done.stderr


def test_densities_fill_the_picture():
    for make in (*plane.DATA.values(), plane.mixture):
        rows = make(2000)
        assert rows.shape == (2000, 2)
        assert 1.5 < float(rows.abs().max()) < plane.REACH


def test_models_of_the_plane_have_equal_size():
    sizes = [size(make(6)) for make in toy2d.MODELS.values()]
    assert max(sizes) < 1.02 * min(sizes)


class TestEstimators:
    @pytest.mark.slow
    def test_scatter_is_that_of_the_estimator(self):
        torch.set_default_dtype(torch.float64)
        g, x = fp.LipschitzMLP(5), torch.randn(8, 5)
        scatter = estimators.measure("", fp.Krylov(terms=fp.Truncated(6)), g, x, 200)
        assert scatter.products == 6
        # All of the space: what is left is the noise of the probe, off the diagonal of log(I + J).
        ((part, x),) = residual_parts(fp.ComposedTransform(fp.ResidualTransform(g)), x)
        off = torch.stack([matrix_log(j) for j in jacobians(part, x)])
        off = off - torch.diag_embed(off.diagonal(dim1=1, dim2=2))
        variance = float((off + off.mT).square().sum((1, 2)).mean()) / 2
        assert scatter.value < math.sqrt(variance)  # the control takes its share
        plain = estimators.measure("", fp.Krylov(terms=fp.Truncated(6), control=None), g, x, 200)
        assert plain.value == pytest.approx(math.sqrt(variance), rel=0.15)
        assert plain.z < 5

    def test_products_are_counted_as_probes_times_terms(self):
        logdet = fp.Krylov(terms=estimators.half(3), probes=fp.Rademacher(samples=2))
        assert estimators.products(logdet, 64, 0.9) == pytest.approx(2 * 4, rel=0.05)


def matrix_log(jacobian, terms=400):
    """log(I + J) by its power series."""
    total, power = torch.zeros_like(jacobian), torch.eye(len(jacobian))
    for k in range(1, terms):
        power = power @ jacobian
        total = total - (-1) ** k / k * power
    return total


def test_errors_shrink_with_evaluations():
    g = sampling.stretched(4, 0.9).double()
    x = torch.randn(20, 4, dtype=torch.float64)
    for solver in sampling.SOLVERS:
        points = list(sampling.curve(g, solver, x).values())
        assert all(before < after for (before, _), (after, _) in itertools.pairwise(points))
        assert all(error <= tol for tol, (_, error) in zip(sampling.TOLERANCES, points, strict=True))


def test_stretched_networks_are_at_their_bound():
    g = sampling.stretched(4, 0.9)
    ((part, x),) = residual_parts(fp.ComposedTransform(fp.ResidualTransform(g)), torch.randn(200, 4))
    steepest = float(torch.linalg.matrix_norm(jacobians(part, x), math.inf).max())
    assert 0.7 < steepest <= 0.9 + 1e-5
