"""examples/common: tables, clock, memory, report, provenance and command lines."""

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import common
import flowplug as fp
from common import clock, memory, report, tables
from common.command import OptionError, among, parse, positive, refusing, usable
from common.provenance import commit, provenance

MODULES = [importlib.import_module(module.name) for module in pkgutil.iter_modules(common.__path__, "common.")]
PLACES = [Path(common.__file__).parents[1], Path(fp.__file__).parents[1]]
PATHS = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PLACES))}
DOCTESTS = [test for module in MODULES for test in doctest.DocTestFinder().find(module) if test.examples]


@pytest.mark.parametrize("example", DOCTESTS, ids=lambda test: test.name)
def test_docstring_example(example):
    assert doctest.DocTestRunner().run(example).failed == 0


def test_no_script_hides_a_package():
    places = [*(Path(common.__file__).parents[1]).glob("*/*.py"), *Path(fp.__file__).parents[1].glob("*/*.py")]
    packages = {path.parent.name for path in places if path.name == "__init__.py"}
    scripts = {path.stem for path in places if path.parent.name in ("benchmarks", "tutorials")}
    assert not packages & scripts  # a script's own folder comes first where modules are looked for


def rows(*shape):
    return torch.randn(*shape, dtype=torch.float64).numpy()


def saved(path, **arrays):
    np.savez(path / "table.npz", **arrays)
    return path / "table.npz"


class TestTables:
    def test_are_standardised_by_their_training_rows(self, tmp_path):
        path = saved(tmp_path, train=5 + rows(50, 3), val=5 + rows(9, 3), test=rows(8, 3))
        table = tables.load(path)
        assert (table.name, table.features, table.train.dtype) == ("table", 3, torch.float32)
        assert float(table.train.mean().abs()) < 1e-5
        assert float(table.test.mean()) < -3
        assert [len(part) for part in (table.train, table.val, table.test)] == [50, 9, 8]
        torch.testing.assert_close(tables.load(path, dtype=torch.float64).val.float(), table.val)

    def test_one_needs_no_file(self):
        table = tables.load()
        assert [tuple(part.shape) for part in (table.train, table.val, table.test)] == [(341, 30), (114, 30), (114, 30)]
        torch.manual_seed(1)
        assert torch.equal(table.train, tables.load("breast-cancer").train)

    def test_photographs_are_patches_without_their_mean(self):
        arrays = tables.patches()
        assert {part: rows.shape for part, rows in arrays.items()} == {
            "train": (41160, 63),
            "val": (848, 63),
            "test": (1696, 63),
        }
        for part, rows in arrays.items():
            assert np.array_equal(rows, tables.patches()[part])
        whole = np.concatenate([arrays["test"], -arrays["test"].sum(1, keepdims=True)], 1)
        np.testing.assert_allclose(whole.sum(1), 0, atol=1e-12)
        assert whole.min() > -1
        assert whole.max() < 1
        assert len(np.unique(whole)) > whole.size - 64  # noise fills the grey levels
        assert tables.load("photographs").features == 63

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"test": None}, r"lacks the arrays \['test'\]"),
            ({"val": rows(9, 4)}, "one width"),
            ({"val": np.full((9, 3), np.nan)}, "val of .* holds 27 NaN"),
            ({"train": np.ones((50, 3))}, r"features \[0, 1, 2\] are constant in train"),
        ],
    )
    def test_bad_files_are_refused(self, tmp_path, change, message):
        arrays = {"train": rows(50, 3), "val": rows(9, 3), "test": rows(8, 3), **change}
        path = saved(tmp_path, **{part: array for part, array in arrays.items() if array is not None})
        with pytest.raises(ValueError, match=message):
            tables.load(path)

    def test_an_absent_file_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"no file .*none\.npz: give an \.npz file .* or breast-cancer"):
            tables.load(tmp_path / "none.npz")


class TestClock:
    def test_counts_the_work_of_this_process(self):
        start = clock.seconds()
        time.sleep(0.1)
        assert clock.seconds() - start < 0.05
        while clock.seconds() - start < 0.06:
            pass

    def test_times_in_turn(self):
        order, now = [], iter(range(1000))
        steps = {name: lambda name=name: order.append(name) for name in "ab"}
        reset = lambda: order.append("-")  # noqa: E731
        times = clock.paired(steps, rounds=2, warm=1, clock=lambda: float(next(now)), before=reset)
        assert "".join(order) == "-a-b" * 3
        assert times == {"a": [1.0, 1.0], "b": [1.0, 1.0]}

    def test_ratios_are_of_rounds_and_of_totals(self):
        ratio = clock.ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0])
        assert (ratio.low, ratio.median, ratio.high) == (1.0, 2.0, 3.0)
        assert ratio.total == pytest.approx(12 / 7)


@pytest.mark.slow
def test_memory_sees_what_a_process_held():
    code = "import torch\nfrom common import memory\nbefore = memory.peak()\ntorch.ones(2**26)\n"
    code += "memory.reset()\nprint(memory.peak() - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=PATHS)
    assert 200 < float(done.stdout) < 320
    assert memory.peak() > 50


class TestReport:
    def test_files_are_replaced_whole_or_not_at_all(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"before")

        def interrupted():
            with report.replacing(path) as file:
                file.write(b"half")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert path.read_bytes() == b"before"
        assert list(tmp_path.iterdir()) == [path]
        with report.replacing(path) as file:
            file.write(b"after")
            assert path.read_bytes() == b"before"
        assert path.read_bytes() == b"after"
        assert list(tmp_path.iterdir()) == [path]

    def test_lines_come_back(self, tmp_path):
        path = tmp_path / "there" / "lines.jsonl"
        assert report.read_lines(path) == []
        report.append_line(path, {"a": 1})
        report.append_line(path, {"b": [None, "ü"]})
        assert report.read_lines(path) == [{"a": 1}, {"b": [None, "ü"]}]
        report.write_lines(path, [{"c": 2.5}])
        assert report.read_lines(path) == [{"c": 2.5}]
        with pytest.raises(ValueError, match="JSON compliant"):
            report.append_line(path, {"d": float("nan")})
        assert report.read_lines(path) == [{"c": 2.5}]

    def test_numbers_that_are_not_finite_are_dashes(self):
        shown = [report.shown(report.finite(value), ".1f") for value in (1.25, float("nan"), float("-inf"))]
        assert shown == ["1.2", "-", "-"]

    def test_rows_need_a_cell_for_each_column(self):
        with pytest.raises(ValueError, match=r"a cell for each of \['a', 'b'\]; got \['1'\]"):
            report.markdown(["a", "b"], [[1]])


class TestProvenance:
    def test_the_commit_is_that_of_the_code(self, tmp_path):
        def git(*arguments):
            who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
            done = subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True, text=True)
            return done.stdout.strip()

        assert commit(tmp_path) is None
        git("init", "-q")
        assert commit(tmp_path) is None
        (tmp_path / "flowplug").mkdir()
        (tmp_path / "flowplug" / "code.py").write_text("1")
        git("add", ".")
        git("commit", "-qm", "code")
        code = git("rev-parse", "--short=7", "HEAD")
        assert commit(tmp_path) == code
        (tmp_path / "results.md").write_text("2")
        assert commit(tmp_path) == code
        git("add", ".")
        git("commit", "-qm", "results")
        assert commit(tmp_path) == code
        (tmp_path / "examples" / "uci").mkdir(parents=True)
        (tmp_path / "examples" / "uci" / "new.py").write_text("3")
        assert commit(tmp_path) == f"{code}+changes"
        assert commit(tmp_path, "results.md") != code

    def test_versions_stand_beside_it(self):
        found = provenance()
        assert found["flowplug"] == fp.__version__
        assert found["torch"] == torch.__version__
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
        assert found["device"]


@dataclass(frozen=True)
class Choice:
    """Options of a test."""

    names: tuple[str, ...] = ("a",)  # some
    weight_decay: float = 0.5  # another
    device: str = "cpu"  # where

    def __post_init__(self):
        usable(self)
        among(self, "names", "abc")
        positive(self, "weight_decay")


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"", b"PK\x03\x04 damaged"])
def test_another_file_is_refused_with_what_to_write(tmp_path, content):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is no \.npz file: write one by numpy\.savez"):
        tables.load(path)


class TestCommand:
    def test_options_are_fields(self, capsys):
        assert parse(Choice, []) == Choice()
        assert parse(Choice, ["--names", "b", "c", "--weight-decay", "2"]) == Choice(("b", "c"), 2.0)
        with pytest.raises(SystemExit):
            parse(Choice, ["--help"])
        assert re.search(r"--weight-decay FLOAT\s.*another", capsys.readouterr().out)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--names", "a", "d"], "error: --names must be of a, b, c; got d"),
            (["--names"], "error: --names must be of a, b, c; got none"),
            (["--device", "cuda"], "error: --device cuda needs a GPU that torch can use, and there is none: use cpu"),
            (["--weight-decay", "0"], "error: --weight-decay must be positive; got 0.0"),
        ],
    )
    def test_wrong_values_end_with_a_line(self, monkeypatch, capsys, arguments, message):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(SystemExit) as end:
            parse(Choice, arguments)
        assert end.value.code == 2
        assert capsys.readouterr().err == f"{message}\n"

    @pytest.mark.parametrize("arguments", [["--weight-decay", "x"], ["--other", "1"]])
    def test_wrong_options_end_the_process(self, capsys, arguments):
        with pytest.raises(SystemExit) as end:
            parse(Choice, arguments)
        assert end.value.code == 2
        assert arguments[-2].strip("-") in capsys.readouterr().err

    @pytest.mark.parametrize("error", [OptionError, ValueError, OSError, ImportError])
    def test_what_cannot_be_used_ends_with_a_line(self, capsys, error):
        with pytest.raises(SystemExit) as end, refusing():
            raise error("do this")
        assert end.value.code == 2
        assert capsys.readouterr().err == "error: do this\n"
