"""Reading a flag off a tensor."""

import pytest
import torch

from flowplug._reading import known


def test_known():
    assert known(torch.ones(())) is True
    assert known(torch.zeros(())) is False
    seen = []
    torch.func.vmap(lambda x: seen.append(known(x.isfinite().all())) or x)(torch.randn(3, 2))
    assert seen == [None]
    with pytest.raises(RuntimeError, match="ambiguous"):
        known(torch.zeros(2))
