"""examples/common/rows.py: means of rows that are kept with results."""

import pytest
import torch

from common.paired import Estimate, estimated, over_seeds
from common.rows import NAME, Rows


def saved(out, model, values, lr=1e-3):
    config = {"data": "t", "model": model, "seed": 0, "lr": lr}
    torch.save({"config": config, "values": torch.tensor(values)}, out / f"t-{model}-0.values.pt")
    return {"config": config}


def kept(out, *runs):
    rows = Rows(out)
    rows(*runs)
    rows.write()
    for path in out.glob("*.values.pt"):
        path.unlink()


def test_means_outlive_the_rows(tmp_path):
    runs = saved(tmp_path, "a", [1.0, 3.0, 5.0]), saved(tmp_path, "b", [1.0, 2.0, 3.0])
    kept(tmp_path, *runs)
    assert Rows(tmp_path)(*runs) == Estimate(1.0, pytest.approx(2 / 3**0.5))
    assert Rows(tmp_path)(runs[0]) is None


def test_a_mean_is_of_no_run_of_other_options(tmp_path):
    runs = saved(tmp_path, "a", [1.0, 3.0]), saved(tmp_path, "b", [1.0, 2.0])
    kept(tmp_path, *runs)
    assert Rows(tmp_path)(runs[0], {"config": {**runs[1]["config"], "lr": 5e-3}}) is None


def test_rows_that_are_there_take_the_place_of_what_was_kept(tmp_path):
    kept(tmp_path, saved(tmp_path, "a", [1.0, 3.0]))
    assert Rows(tmp_path)(saved(tmp_path, "a", [5.0, 7.0])).mean == 6.0


def test_what_failed_has_no_mean(tmp_path):
    assert Rows(tmp_path)({**saved(tmp_path, "a", [1.0, 3.0]), "failed": "why"}) is None


def test_what_is_not_asked_for_is_not_kept(tmp_path):
    line = saved(tmp_path, "a", [1.0, 3.0])
    kept(tmp_path, line)
    rows = Rows(tmp_path)
    rows.write()
    assert not (tmp_path / NAME).read_text()


def test_values_that_are_not_finite_are_kept_as_such(tmp_path):
    line = saved(tmp_path, "a", [float("nan"), 3.0])
    kept(tmp_path, line)
    assert str(Rows(tmp_path)(line)) == "+nan ± nan"


def test_the_error_of_rows_that_seeds_share_is_not_divided_by_their_number():
    values = torch.randn(500, generator=torch.Generator().manual_seed(0))
    alone, thrice = estimated([values]), estimated([values, values, values])
    assert thrice.error == pytest.approx(alone.error)
    assert over_seeds([Estimate(1.0, 0.0), Estimate(3.0, 0.0)]).error == pytest.approx(2.0)
