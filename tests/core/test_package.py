"""What is installed and imported, and that every documented example runs."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest
import torch
from torch import nn

import flowplug as fp
import flowplug_nflows
import flowplug_normflows
import flowplug_zuko

MODULES = [
    importlib.import_module(module.name)
    for package in (fp, flowplug_nflows, flowplug_normflows, flowplug_zuko)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]
EXAMPLES = [
    test for module in MODULES for test in doctest.DocTestFinder().find(module, module.__name__) if test.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda test: test.name)
@pytest.mark.usefixtures("users_defaults")
def test_docstring_example(example):
    public = {name: getattr(fp, name) for name in dir(fp) if not name.startswith("_")}
    example.globs = {**public, "fp": fp, "torch": torch, "nn": nn, **vars(sys.modules[example.globs["__name__"]])}
    assert doctest.DocTestRunner().run(example).failed == 0


def test_every_public_class_and_bridge_has_an_example():
    names = {test.name.rsplit(".", 1)[-1] for test in EXAMPLES}
    public = {n for n in dir(fp) if isinstance(getattr(fp, n), type) and not issubclass(getattr(fp, n), Exception)}
    assert {"from_nflows", "from_normflows", "from_zuko"} <= names
    assert public - names == set()


def test_importing_the_core_loads_no_host_and_nothing_but_torch():
    code = (
        "import sys, torch; before = set(sys.modules); import flowplug\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "print(*sorted(new - {'torch', 'flowplug'}), sep=',')"
    )
    root = fp.__path__[0].rsplit("/", 1)[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("host", "more"),
    [
        ("nflows", ", or glasflow, which has a copy of it: pip install 'flowplug[glasflow]'"),
        ("normflows", ""),
        ("zuko", ""),
    ],
)
def test_an_adapter_without_its_host_says_what_to_install(host, more):
    code = f"import sys; sys.modules['{host}'] = sys.modules['glasflow'] = None\nimport flowplug_{host}"
    root = fp.__path__[0].rsplit("/", 1)[0]
    env = {"PYTHONPATH": f"{root}:{root}/adapters", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert f"ImportError: flowplug_{host} needs {host}: pip install 'flowplug[{host}]'{more}\n" in done.stderr


@pytest.mark.parametrize(
    "make",
    [
        lambda **k: fp.LipschitzMLP(3, **k),
        lambda **k: fp.LipschitzLinear(3, 3, **k),
        lambda **k: fp.LipschitzConv2d(3, 3, 3, **k),
        lambda **k: fp.LipschitzCNN(3, **k),
        lambda **k: fp.LipschitzDenseNet(3, **k),
        fp.PowerIteration,
        fp.LearnedOrder,
        lambda **k: fp.ResidualTransform(fp.LipschitzMLP(3), **k),
        lambda **k: fp.ActNorm(3, **k),
        fp.PowerSeries,
        fp.FixedPoint,
        fp.Sine,
        lambda **k: flowplug_nflows.ResidualTransform(3, 8, **k),
        lambda **k: flowplug_nflows.ResidualFlow(3, 8, 1, 1, **k),
        lambda **k: flowplug_normflows.Residual(3, **k),
        lambda **k: flowplug_zuko.ResidualTransform(3, **k),
        lambda **k: flowplug_zuko.ResidualFlow(3, **k),
        lambda **k: fp.DenseTransform(3, **k),
        lambda **k: fp.CircularConv2d(3, **k),
        lambda **k: flowplug_nflows.DenseTransform(3, **k),
        lambda **k: flowplug_normflows.Dense(3, **k),
        lambda **k: flowplug_zuko.DenseTransform(3, **k),
        lambda **k: flowplug_zuko.DenseFlow(3, **k),
    ],
)
def test_misspelt_keywords_are_refused(make):
    with pytest.raises(TypeError, match="misspelt"):
        make(misspelt=1)


def public_constructors():
    for package in (fp, flowplug_nflows, flowplug_normflows, flowplug_zuko):
        for name in getattr(package, "__all__", dir(package)):
            made = getattr(package, name)
            if name.startswith("_") or not callable(made) or (isinstance(made, type) and issubclass(made, Exception)):
                continue
            # What is there to be subclassed has no arguments of its own.
            if inspect.isabstract(made) or getattr(made, "_is_protocol", False) or made is fp.LipschitzNetwork:
                continue
            yield pytest.param(made, id=f"{package.__name__}.{name}")


@pytest.mark.parametrize("made", list(public_constructors()))
def test_help_shows_arguments_and_their_defaults(made):
    for parameter in inspect.signature(made).parameters.values():
        assert parameter.name not in ("args", "kwargs")
        assert parameter.kind is not parameter.VAR_KEYWORD
        assert " at 0x" not in repr(parameter.default)


def test_the_public_api_fits_one_screen():
    assert len([name for name in dir(fp) if not name.startswith("_")]) <= 122
