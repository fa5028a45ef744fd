"""What the comparison example makes of its input; CI runs it as a whole."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def compare():
    path = Path(__file__).parents[1] / "examples" / "compare.py"
    spec = importlib.util.spec_from_file_location("compare", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def saved(path, **arrays):
    np.savez(path / "table.npz", **arrays)
    return path / "table.npz"


def rows(*shape):
    return torch.randn(*shape, dtype=torch.float64, device="cpu").numpy()


def test_tables_are_standardised_by_their_training_rows(compare, tmp_path):
    data = compare.load_data(saved(tmp_path, train=5 + rows(50, 3), val=rows(9, 3), test=rows(8, 3)), "cpu")
    assert data.name == "table"
    assert data.train.dtype == torch.float32
    assert float(data.train.mean().abs()) < 1e-5
    assert [len(part) for part in (data.train, data.val, data.test)] == [50, 9, 8]


def test_the_default_table_needs_no_file(compare):
    data = compare.load_data(None, "cpu")
    assert [tuple(part.shape) for part in (data.train, data.val, data.test)] == [(341, 30), (114, 30), (114, 30)]
    assert torch.equal(data.train, compare.load_data(None, "cpu").train)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": None}, r"lacks the arrays \['test'\]"),
        ({"val": rows(9, 4)}, "one width"),
        ({"val": np.full((9, 3), np.nan)}, "finite tables"),
        ({"train": np.ones((50, 3))}, r"features \[0, 1, 2\] are constant in train"),
    ],
)
def test_bad_files_are_refused(compare, tmp_path, change, message):
    arrays = {"train": rows(50, 3), "val": rows(9, 3), "test": rows(8, 3), **change}
    path = saved(tmp_path, **{part: array for part, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=message):
        compare.load_data(path, "cpu")


@pytest.mark.usefixtures("users_defaults")
@pytest.mark.parametrize("host", ["nflows", "normflows", "zuko"])
def test_every_model_trains_and_inverts(compare, host):
    x = torch.randn(16, 4)
    for make in compare.HOSTS[host](4):
        model = make()
        (-model.log_prob(x).mean()).backward()
        model.module.eval()
        assert compare.log_likelihoods(model, x).shape == (16,)
        with torch.no_grad():
            assert model.sample(5).shape == (5, 4)
            torch.testing.assert_close(model.round_trip(x), x, atol=1e-3, rtol=0)
