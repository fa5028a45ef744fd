"""What a release says about itself agrees."""

import re
from pathlib import Path

import flowplug as fp

ROOT = Path(__file__).parents[2]


def test_version_and_citation_are_those_of_the_newest_release():
    newest = re.search(
        r"^## (\d+\.\d+\.\d+) \((\d{4}-\d{2}-\d{2})\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert fp.__version__ == newest[1]
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == newest[1]
    assert re.search(r"^date-released: (.*)$", citation, re.MULTILINE)[1] == newest[2]
