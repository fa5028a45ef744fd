"""The Python of README.md and docs/ runs as it stands: blocks of the README alone, those of another page in order."""

from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.usefixtures("users_defaults")
def test_python(run_snippet):
    run_snippet()


def test_length_of_the_readme():
    text = README.read_text()
    assert text.count("```python\n") >= 4
    assert len(text.splitlines()) < 100
