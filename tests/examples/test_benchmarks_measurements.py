"""Figures as lines of JSON and as tables, and the page that is made of them."""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass

import pytest

from benchmarks import page
from benchmarks.measurements import Figure, Recorded, command, latest, line, median, over, read, run, table
from common.provenance import ROOT
from common.report import append_line


@dataclass(frozen=True)
class Settings(Recorded):
    """Those of `measured`."""

    size: int = 2


def measured(settings):
    """Two measurements of one table."""
    for part in range(settings.size):
        yield (
            "Parts",
            {"size": settings.size, "part": part},
            {"time": Figure(1.23456, "s", quartiles=(1.0, 2.0)), "n": 3},
        )


def made(setting, figures, **more):
    """A line as a file has it."""
    return line("T", setting, {name: Figure(value, "s") for name, value in figures.items()}) | more


class TestRun:
    def test_prints_tables(self, monkeypatch, capsys):
        monkeypatch.setattr("sys.argv", ["parts.py", "--size", "2"])
        run(measured, Settings, None)
        text = capsys.readouterr().out
        tables, source = text.split("\npython ")
        assert tables == (
            "\nParts\n\nsize 2\n\n| part | time, s | n |\n|---|---|---|\n| 0 | 1.235 [1, 2] | 3 |\n"
            "| 1 | 1.235 [1, 2] | 3 |\n"
        )
        assert re.fullmatch(r"examples/benchmarks/parts.py --size 2\ncommit .*, torch .*\n", source)

    def test_records_lines_with_their_provenance(self, monkeypatch, tmp_path):
        path = tmp_path / "folder" / "parts.jsonl"
        for _ in range(2):
            monkeypatch.setattr("sys.argv", ["here/parts.py", "--size", "2", "--record", str(path)])
            run(measured, Settings, None)
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        assert len(lines) == 4
        assert {"commit", "flowplug", "torch", "python", "device", "date"} < set(lines[0])
        assert lines[0]["benchmark"] == "parts"
        assert lines[0]["command"] == "python examples/benchmarks/parts.py --size 2"
        assert lines[0]["setting"] == {"size": 2, "part": 0}
        assert lines[0]["figures"]["time"] == {"value": 1.235, "unit": "s", "quartiles": [1.0, 2.0]}

    @pytest.mark.parametrize("words", [["--record", "/a/b.jsonl"], ["--record=/a/b.jsonl"]])
    def test_commands_name_no_folder(self, words):
        found = command(["/a/b/x.py", "--data", "/c/d/power.npz", *words, "--only", "two words"])
        assert found == "python examples/benchmarks/x.py --data power.npz --only 'two words'"


class TestFigures:
    def test_numbers_that_json_has_not_are_none(self):
        assert line("T", {}, {"x": math.nan})["figures"]["x"] == {"value": None, "unit": ""}

    def test_numbers_have_four_digits(self):
        figures = line("T", {}, {str(x): x for x in (12345.6, 0.0123456, 7)})["figures"]
        assert [figure["value"] for figure in figures.values()] == [12350, 0.01235, 7]

    def test_medians_have_quartiles(self):
        assert median([3.0, 1.0, 2.0], "s") == Figure(2.0, "s", quartiles=(1.0, 3.0))

    def test_ratios_are_round_by_round_or_of_the_totals(self):
        assert over([1.0, 2.0, 9.0], [1.0, 1.0, 3.0]).value == 2.0
        assert over([1.0, 2.0, 9.0], [1.0, 1.0, 3.0], total=True).value == pytest.approx(12 / 5)


class TestTable:
    def test_spreads_are_shown(self):
        figures = [
            Figure(1.5, "nats", two_standard_errors=0.1),
            Figure(2.0, quartiles=(1.0, 3.0)),
            Figure(0.5, least=0.2, most=0.9),
        ]
        text = table([line("T", {}, {str(i): figure for i, figure in enumerate(figures)})])
        assert text.splitlines()[-1] == "| 1.5 ± 0.1 | 2 [1, 3] | 0.5 (0.2 to 0.9) |"

    def test_values_of_a_setting_become_columns(self):
        lines = [made({"kind": kind, "D": d}, {"time": d / 2}) for kind in ("a", "b") for d in (2, 4)]
        assert table(lines, "D") == "time, s\n\n| kind | D 2 | D 4 |\n|---|---|---|\n| a | 1 | 2 |\n| b | 1 | 2 |"

    def test_columns_of_several_figures_name_them(self):
        text = table([made({"data": "power"}, {"x": 1.0, "y": 2.0})], "data")
        assert text.splitlines()[0] == "| power: x, s | power: y, s |"

    def test_the_last_of_one_setting_counts(self):
        old, new, other = made({"D": 1}, {"x": 1.0}), made({"D": 1}, {"x": 2.0, "y": 3.0}), made({"D": 2}, {"x": 4.0})
        assert latest([old, other, new]) == [other, new]
        assert latest([new, old]) == [new, old]  # y is in no later one

    def test_numbers_keep_their_digits(self, tmp_path):
        (tmp_path / "x.jsonl").write_text(
            '{"table": "T", "setting": {}, "figures": {"x": {"value": 1.50, "unit": ""}}}'
        )
        assert table(read(tmp_path / "x.jsonl")).splitlines()[-1] == "| 1.50 |"


class TestPage:
    def test_it_is_what_the_lines_make(self):
        assert page.PAGE.read_text() == page.page(), "run `python -m benchmarks.page` in examples/"

    def test_every_line_is_in_a_section(self):
        sections = Counter(re.findall(r"^## (.*)$", page.QUESTIONS.read_text(), re.MULTILINE))
        tables = {each["table"] for path in page.RECORDS.glob("*.jsonl") for each in read(path)}
        assert tables <= set(sections)
        assert max(sections.values()) == 1

    def test_docstrings_name_sections_that_are_there(self):
        sections = re.findall(r"^## (.*)$", page.PAGE.read_text(), re.MULTILINE)
        sources = " ".join(path.read_text() for path in (ROOT / "flowplug").rglob("*.py"))
        named = re.findall(r'docs/benchmarks\.md,\s+"([^"]+)"', sources)
        assert {re.sub(r"\s+", " ", name) for name in named} <= set(sections)

    def test_every_line_says_where_it_comes_from(self):
        for path in page.RECORDS.glob("*.jsonl"):
            for each in read(path):
                assert each["benchmark"] == path.stem
                assert each["commit"]
                assert re.fullmatch(r"\d{4}-\d\d-\d\d", each["date"])
                assert all("unit" in figure for figure in each["figures"].values())

    def test_sections_without_lines_are_left_out(self, tmp_path):
        append_line(
            tmp_path / "memory.jsonl",
            line("Memory of a training step", {"gradient": "Neumann", "terms": 2}, {"peak": Figure(5.0, "MiB")})
            | {"commit": "abc", "date": "2026-01-01", "flowplug": "1", "torch": None, "device": "cpu", "command": "go"},
        )
        text = page.page(tmp_path)
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Memory of a training step"]
        assert "```sh\ngo\n```\n\npeak, MiB; gradient Neumann\n\n| terms 2 |\n|---|\n| 5.0 |\n\n- commit `abc`" in text
