"""What the examples make of their input; CI runs them as a whole."""

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def toy2d():
    return load("toy2d")


@pytest.fixture
def dense(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)  # it imports the other two
    yield load("dense")
    for name in ("compare", "toy2d"):
        sys.modules.pop(name)


def saved(path, **arrays):
    np.savez(path / "table.npz", **arrays)
    return path / "table.npz"


def rows(*shape):
    return torch.randn(*shape, dtype=torch.float64, device="cpu").numpy()


@pytest.mark.usefixtures("users_defaults")
class TestDense:
    def test_images_are_logits_of_dequantised_pixels(self, dense, tmp_path):
        train, val = (torch.randint(256, (n, 3, 2), dtype=torch.uint8).numpy() for n in (400, 9))
        data, offset = dense.load(saved(tmp_path, train=train, val=val, test=val), "cpu")
        assert data.train.shape == (400, 6)
        torch.testing.assert_close(data.train.std(0), torch.ones(6))
        # Back to pixels: the logits lie within one grey value of the image, and their spread is the offset.
        logits = torch.logit((torch.tensor(train).flatten(1) + 0.5) / 256)
        slopes = [torch.stack([a, b]).cov() for a, b in zip(data.train.T, logits.T, strict=True)]
        scales = torch.stack([cov[0, 1] / cov[0, 0] for cov in slopes])
        assert float(scales.log().sum()) == pytest.approx(offset, abs=0.2)

    def test_tables_are_those_of_the_comparison(self, dense, tmp_path):
        data, offset = dense.load(saved(tmp_path, train=rows(50, 3), val=rows(9, 3), test=rows(8, 3)), "cpu")
        assert data.train.shape == (50, 3)
        assert offset == 0

    def test_models_have_as_many_parameters(self, dense):
        makes = dense.models(20, argparse.Namespace(layers=10, slope=0.3, whiten=True), torch.randn(500, 20))
        sizes = {name: dense.size(make()) for name, make in makes.items()}
        assert all(0.85 < size / sizes["dense flow"] <= 1 for size in sizes.values())
        for make in makes.values():
            make()().log_prob(torch.randn(16, 20)).mean().backward()


@pytest.mark.usefixtures("users_defaults")
def test_toy_densities_fill_the_picture(toy2d):
    for data in toy2d.DATA.values():
        rows = data(2000)
        assert rows.shape == (2000, 2)
        assert 1.5 < float(rows.abs().max()) < toy2d.REACH


@pytest.mark.usefixtures("users_defaults")
def test_toy_models_have_equal_size(toy2d):
    sizes = [sum(p.numel() for p in make(6).parameters()) for make in toy2d.MODELS.values()]
    assert max(sizes) < 1.02 * min(sizes)
