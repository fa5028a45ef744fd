"""The reference has every public name once."""

import collections
import inspect
import re
from pathlib import Path

import pytest

import flowplug
import flowplug_nflows
import flowplug_normflows
import flowplug_zuko

REFERENCE = Path(__file__).parents[2] / "docs" / "api"
DIRECTIVE = re.compile(r"^\.\. (?:currentmodule:: (\S+)|(?:auto\w+|py:data):: (\S+))$", re.MULTILINE)


def documented():
    """How often each name of each module has a directive."""
    names = collections.Counter()
    for page in REFERENCE.glob("*.md"):
        module = None
        for current, name in DIRECTIVE.findall(page.read_text()):
            module = current or module
            if name:
                names[module, name] += 1
    return names


@pytest.mark.parametrize(
    "module", [flowplug, flowplug.testing, flowplug_nflows, flowplug_normflows, flowplug_zuko], ids=lambda m: m.__name__
)
def test_every_public_name_is_documented_once(module):
    public = {name for name in vars(module) if not name.startswith("_") and not inspect.ismodule(vars(module)[name])}
    found = {name: count for (owner, name), count in documented().items() if owner == module.__name__}
    assert found == dict.fromkeys(public, 1)
