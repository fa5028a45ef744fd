"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.strip().splitlines()[0])
def test_snippet(snippet):
    torch.set_default_dtype(torch.float32)
    device = torch.get_default_device()
    torch.set_default_device("cpu")
    try:
        exec(compile(snippet, "README.md", "exec"), {})
    finally:
        torch.set_default_device(device)


def test_length():
    assert len(SNIPPETS) >= 4
    assert len(README.splitlines()) < 100
