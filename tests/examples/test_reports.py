"""examples/reports.py: what is written of results follows from their JSON lines."""

import re
import shutil

import pytest

import reports
from common.report import write_lines
from common.rows import NAME

FOLDERS = sorted(path.parent for path in reports.RESULTS.rglob("results.jsonl") if reports.study_of(path.parent))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_results_are_what_their_lines_say(folder, tmp_path):
    for name in ("results.jsonl", NAME, *(() if (folder / NAME).exists() else ("summary.md",))):
        if (folder / name).exists():
            shutil.copy(folder / name, tmp_path)
    reports.main(["--folders", str(tmp_path)])
    for name in ("table.md", "summary.md", NAME):
        if (folder / name).exists():
            assert (tmp_path / name).read_text() == (folder / name).read_text(), name
    assert (tmp_path / "gains.png").exists() == (folder / "gains.png").exists()


@pytest.mark.parametrize("lines", [[], [{"config": {}, "failed": "why"}], [{"other": 1}]])
def test_folders_of_no_study_are_refused(tmp_path, capsys, lines):
    write_lines(tmp_path / "results.jsonl", lines)
    with pytest.raises(SystemExit) as end:
        reports.main(["--folders", str(tmp_path)])
    assert end.value.code == 2
    assert re.fullmatch(r"error: --folders \S+ holds no results.jsonl of .*", capsys.readouterr().err.strip())
