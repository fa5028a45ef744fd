"""The Python of the pages, README.md and docs/; of an installed wheel there is the README alone."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
README, EXTEND, PAGES = ROOT / "README.md", ROOT / "docs" / "extend.md", sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)

collect_ignore_glob = [] if PAGES else ["test_extend*.py", "test_reference.py", "test_release.py"]


def blocks(page):
    """The Python of a page, block by block, each behind as many empty lines as stand before it on the page."""
    text = page.read_text()
    return ["\n" * text.count("\n", 0, match.start(1)) + match[1] for match in BLOCK.finditer(text)]


def run(page, sources, patch):
    """Runs blocks one after the other in a module of their own, which classes need to be pickled."""
    module = ModuleType(f"page_{page.stem.lower()}")
    patch.setitem(sys.modules, module.__name__, module)
    for source in sources:
        exec(compile(source, str(page), "exec"), vars(module))
    return module


def pytest_generate_tests(metafunc):
    """Blocks of the README alone, those of another page together."""
    if "snippet" in metafunc.fixturenames:
        cases = [pytest.param((README, [block]), id=block.strip().splitlines()[0]) for block in blocks(README)]
        cases += [pytest.param((page, blocks(page)), id=page.name) for page in PAGES if blocks(page)]
        metafunc.parametrize("snippet", cases)


@pytest.fixture
def run_snippet(snippet, monkeypatch):
    """Runs the case."""
    return lambda: run(*snippet, monkeypatch)


@pytest.fixture(scope="module")
def page():
    """The namespace of docs/extend.md."""
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        yield run(EXTEND, blocks(EXTEND), patch)
