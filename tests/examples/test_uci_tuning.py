"""examples/uci/tuning.py: settings that are taken from other results."""

import importlib
import re

import pytest

from common.report import read_lines, write_lines
from uci.tuning import tuned

uci = importlib.import_module("uci.__main__")


def line(data, model, validation, lr, decay):
    return {"config": {"data": data, "model": model, "lr": lr, "weight_decay": decay}, "validation": validation}


LINES = [
    line("table", "zuko-maf", 1.0, 1e-3, 0.0),
    line("table", "zuko-maf", 3.0, 3e-3, 0.1),
    line("table", "zuko-maf", 2.0, 4e-3, 0.0),
    line("table", "zuko-nsf", 9.0, 5e-3, 0.0),
    line("other", "zuko-maf", 9.0, 6e-3, 0.0),
]


def test_settings_are_those_of_the_best_run_on_validation_rows():
    assert tuned(LINES, {"data": "table", "model": "zuko-maf"}) == {"lr": 3e-3, "weight_decay": 0.1}
    assert tuned(LINES, {"data": "other", "model": "zuko-maf"})["lr"] == 6e-3


@pytest.mark.slow
def test_a_study_takes_them_from_folders(table, tmp_path):
    runs = ["--data", str(table), "--parameters", "500", "--batch", "64", "--steps", "5", "--models", "zuko-maf"]
    for rate in ("1e-5", "5e-2"):
        uci.main([*runs, "--lr", rate, "--out", str(tmp_path / rate)])
    out = tmp_path / "out"
    uci.main([*runs, "--tuned", str(tmp_path / "1e-5"), str(tmp_path / "5e-2"), "--out", str(out)])
    (found,) = read_lines(out / "results.jsonl")
    tried = [read_lines(tmp_path / rate / "results.jsonl")[0]["validation"] for rate in ("1e-5", "5e-2")]
    assert tried[1] > tried[0]
    assert found["config"]["lr"] == 5e-2
    assert "| 0.05 | 0 |" in (out / "table.md").read_text()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (None, r"error: --tuned \S+ holds no results.jsonl: give folders that uci.py wrote"),
        (LINES[3:4], "error: --tuned holds no run of zuko-maf on table: train it there first"),
        ([{**LINES[0], "validation": None}], "error: --tuned holds no run of zuko-maf on table: train it there first"),
    ],
)
def test_what_was_not_tried_is_refused(table, tmp_path, capsys, written, message):
    folder = tmp_path / "tried"
    folder.mkdir()
    if written:
        write_lines(folder / "results.jsonl", written)
    with pytest.raises(SystemExit) as end:
        uci.main(["--data", str(table), "--models", "zuko-maf", "--tuned", str(folder), "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert re.fullmatch(message, capsys.readouterr().err.strip())
