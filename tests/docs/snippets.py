"""The Python of the pages: README.md and docs/*.md, where there are any."""

import re
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
README, PAGES = ROOT / "README.md", sorted((ROOT / "docs").glob("*.md"))

_BLOCK = re.compile(r"^```python\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def blocks(page):
    """The Python of a page, block by block, each behind as many empty lines as stand before it on the page."""
    text = page.read_text()
    return ["\n" * text.count("\n", 0, match.start(1)) + match[1] for match in _BLOCK.finditer(text)]


def run(page, sources, monkeypatch):
    """Runs blocks one after the other in a module of their own, which classes need to be pickled."""
    module = ModuleType(f"page_{page.stem.lower()}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for source in sources:
        exec(compile(source, str(page), "exec"), vars(module))
    return module
