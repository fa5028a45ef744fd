"""examples/uci/beside.py: gains side by side."""

import re

import pytest

from common.gains import GAIN
from common.report import markdown
from uci import beside


def written(folder, *rows):
    folder.mkdir()
    (folder / "summary.md").write_text(markdown(["data", "model", "steps", GAIN], rows))
    return folder


def test_gains_are_those_that_all_have(tmp_path, monkeypatch):
    before = written(tmp_path / "a", ["t", "zuko-maf", 9, ""], ["t", "**zuko-maf+dense**", 7, "+1.0 ± 0.1"])
    after = written(
        tmp_path / "b",
        ["t", "zuko-maf", 19, ""],
        ["t", "zuko-maf+dense", 17, "+2.0 ± 0.2"],
        ["t", "**zuko-maf+residual**", 17, "+3.0 ± 0.2"],
    )
    monkeypatch.setattr("sys.argv", ["beside", str(before), str(after)])
    beside.main()
    head, _, *rows = (after / "beside.md").read_text().splitlines()
    assert head == "| data | model | a, nats | a, steps | b, nats | b, steps |"
    assert rows == ["| t | zuko-maf+dense | +1.0 ± 0.1 | 7 | +2.0 ± 0.2 | 17 |"]


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "give two folders of results, or more"), (["a", "none"], r"\S+none holds no summary.md: give folders .*")],
)
def test_folders_without_a_summary_are_refused(tmp_path, monkeypatch, capsys, names, message):
    written(tmp_path / "a")
    monkeypatch.setattr("sys.argv", ["beside", *(str(tmp_path / name) for name in names)])
    with pytest.raises(SystemExit) as end:
        beside.main()
    assert end.value.code == 2
    assert re.fullmatch(f"error: {message}", capsys.readouterr().err.strip())
