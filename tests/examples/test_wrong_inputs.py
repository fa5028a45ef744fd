"""Wrong inputs of every example end with a line that says what to do, and exit code 2."""

import importlib
import re
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import common
from benchmarks.measurements import Recorded, run
from common.command import parse
from common.tables import PARTS

EXAMPLES = Path(common.__file__).parent.parent
PACKAGES = (
    "images.density",
    "images.hybrid",
    "images.classify",
    "images.memory",
    "uci.__main__",
    "posteriors.__main__",
    "anomalies.__main__",
    "variational.__main__",
)
ANY = ("seed", "seeds")
ZERO = ("weight_decay", "decay", "checkpoint", "exact", "observations")  # which may be zero


def scripts():
    """What `parse` may make of each module that is a script, or a subcommand of one."""
    found = {}
    files = [path for folder in ("tutorials", "benchmarks") for path in sorted((EXAMPLES / folder).glob("[!_]*.py"))]
    own = [f"{path.parent.name}.{path.stem}" for path in files if "__main__" in path.read_text()]
    for name in (*own, "compare", "reports", *PACKAGES):
        module = importlib.import_module(name)
        kinds = [
            value
            for value in vars(module).values()
            if is_dataclass(value)
            and value.__module__ == name
            and (issubclass(value, Recorded) or value.__name__ in ("Options", name.rpartition(".")[2].title()))
        ]
        if kinds:
            (found[name],) = kinds
    return found


SCRIPTS = scripts()
FIELDS = [(script, field.name) for script, kind in SCRIPTS.items() for field in fields(kind)]


def hint(script, name):
    return str(typing.get_type_hints(SCRIPTS[script])[name])


def values(script, name):
    """How many values an option takes."""
    return hint(script, name).count("int") if "int, int" in hint(script, name) else 1


def option(name):
    return f"--{name.replace('_', '-')}"


NUMBERS = [(script, name) for script, name in FIELDS if re.search(r"\b(int|float)\b", hint(script, name))]
SIZES = [(script, name) for script, name in NUMBERS if name not in ANY]
STRICT = [(script, name) for script, name in SIZES if name not in ZERO]
PATHS = [(script, name) for script, name in FIELDS if name in ("out", "record")]
DEVICES = [(script, name) for script, name in FIELDS if name == "device"]
TABLES = [script for script, name in FIELDS if name == "data" and script != "tutorials.toy2d"]


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """The line that a function ends with, in an empty folder on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def ending(function, *arguments):
        with pytest.raises(SystemExit) as end:
            function(*arguments)
        said = capsys.readouterr().err
        assert end.value.code == 2
        assert re.fullmatch(r"error: [^\n]+\n", said), said
        return said.removeprefix("error: ").strip()

    return ending


def arguments(script, *options):
    """With a device that there is: a benchmark of GPUs has none otherwise."""
    device = ["--device", "cpu"] if script == "benchmarks.gpu" and "--device" not in options else []
    return [*device, *options]


def test_scripts_are_found(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where no run has left a folder
    assert len(SCRIPTS) >= 30
    assert len(TABLES) >= 14
    assert all(hasattr(SCRIPTS[script](**device(script)), "__post_init__") for script in SCRIPTS)


def device(script):
    return {"device": "cpu"} if script == "benchmarks.gpu" else {}


@pytest.mark.parametrize("value", ["-1", "nan"])
@pytest.mark.parametrize(("script", "name"), SIZES)
def test_numbers_below_zero(refused, script, name, value):
    if value == "nan" and "float" not in hint(script, name):
        value = "-7"
    given = arguments(script, option(name), *[value] * values(script, name))
    assert option(name) in refused(parse, SCRIPTS[script], given)


@pytest.mark.parametrize(("script", "name"), STRICT)
def test_zero(refused, script, name):
    given = arguments(script, option(name), *["0"] * values(script, name))
    assert option(name) in refused(parse, SCRIPTS[script], given)


@pytest.mark.parametrize(("script", "name"), NUMBERS)
def test_words_for_numbers(refused, script, name):
    given = arguments(script, option(name), *["abc"] * values(script, name))
    assert re.search(f"{option(name)}.*abc.*--help", refused(parse, SCRIPTS[script], given))


@pytest.mark.parametrize("value", ["cuda", "abacus", "meta"])
@pytest.mark.parametrize(("script", "name"), DEVICES)
def test_devices_that_there_are_not(refused, script, name, value):
    assert value in refused(parse, SCRIPTS[script], [option(name), value])


@pytest.mark.parametrize(("script", "name"), PATHS)
def test_paths_that_cannot_be_written(refused, script, name):
    Path("file").write_text("x")
    default = getattr(SCRIPTS[script](**device(script)), name)
    given = "file/deep/x.png" if default is None or default.suffix else "file/deep"
    said = refused(parse, SCRIPTS[script], arguments(script, option(name), given))
    assert re.search(f"{option(name)} {given} is in .*file, which is a file: give a path in a folder", said)
    wrong = "." if default is None or default.suffix else "file"
    assert "is a f" in refused(parse, SCRIPTS[script], arguments(script, option(name), wrong))
    if default is not None and default.suffix:
        assert "must end with .png" in refused(parse, SCRIPTS[script], [option(name), "x.foo"])


@pytest.mark.parametrize("script", SCRIPTS)
def test_options_that_there_are_not(refused, script):
    said = refused(parse, SCRIPTS[script], arguments(script, "--nonsense", "3"))
    assert re.fullmatch("Unrecognized options: --nonsense, 3;.* --help says more", said)


@pytest.mark.parametrize("script", [script for script, name in FIELDS if name == "bounds"])
@pytest.mark.parametrize("value", ["1.5", "1", "0"])
def test_bounds_beyond_one(refused, script, value):
    assert "--bounds must be " in refused(parse, SCRIPTS[script], ["--bounds", value])


def called(script, monkeypatch, given):
    """As a user calls it."""
    module = importlib.import_module(script)
    if script.startswith("images"):
        return importlib.import_module("images.__main__").main([script.rpartition(".")[2], *given])
    if script.startswith(("uci", "compare", "posteriors", "reports", "anomalies", "variational")):
        return module.main(given)
    monkeypatch.setattr("sys.argv", [f"{script}.py", *given])
    return run(module.measure, SCRIPTS[script], None) if script.startswith("benchmarks") else module.main()


def write(name, **changes):
    """A file that is wrong in one way."""
    rows = np.random.default_rng(0).normal(size=(60, 3))
    arrays = {"train": rows, "val": rows, "test": rows, "anomalies": rows} | changes
    np.savez(name, **{key: array for key, array in arrays.items() if array is not None})


WRONG = {
    "missing.npz": lambda name: None,
    "table.csv": lambda name: Path(name).write_text("a,b\n1,2\n"),
    "damaged.npz": lambda name: [write(name), Path(name).write_bytes(Path(name).read_bytes()[:220])],
    "lacking.npz": lambda name: write(name, train=None),
    "nan.npz": lambda name: write(name, train=np.full((60, 3), np.nan)),
    "one_feature.npz": lambda name: write(name, **{part: np.zeros((60, 1)) for part in (*PARTS, "anomalies")}),
    "three_rows.npz": lambda name: write(name, train=np.eye(3)),
    "no_rows.npz": lambda name: write(name, val=np.zeros((0, 3)), test=np.zeros((0, 3))),
    "words.npz": lambda name: write(name, train=np.array([["a", "b", "c"]])),
    "objects.npz": lambda name: write(name, train=np.array([{}, {}], dtype=object)),
    "vector.npz": lambda name: write(name, train=np.zeros(60)),
    "single.npz": lambda name: [np.save("one.npy", np.zeros((60, 3))), Path("one.npy").rename(name)],
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("script", TABLES)
def test_tables_that_cannot_be_used(refused, monkeypatch, script, wrong):
    WRONG[wrong](wrong)
    said = refused(called, script, monkeypatch, ["--data", wrong])
    assert wrong.removesuffix(".npz") in said
    assert "allow_pickle" not in said
