"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.usefixtures("users_defaults")
@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.strip().splitlines()[0])
def test_snippet(snippet):
    exec(compile(snippet, "README.md", "exec"), {})


def test_length():
    assert len(SNIPPETS) >= 4
    assert len(README.splitlines()) < 100
