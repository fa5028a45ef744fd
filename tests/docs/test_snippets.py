"""The Python of README.md and docs/ runs as it stands: blocks of the README alone, those of another page in order."""

import pytest
from snippets import PAGES, README, blocks, run

CASES = [pytest.param(README, [block], id=block.strip().splitlines()[0]) for block in blocks(README)]
CASES += [pytest.param(page, blocks(page), id=page.name) for page in PAGES if blocks(page)]


@pytest.mark.usefixtures("users_defaults")
@pytest.mark.parametrize(("page", "sources"), CASES)
def test_python(page, sources, monkeypatch):
    run(page, sources, monkeypatch)


def test_length_of_the_readme():
    assert len(blocks(README)) >= 4
    assert len(README.read_text().splitlines()) < 100
