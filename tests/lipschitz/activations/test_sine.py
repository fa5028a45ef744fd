"""The sine."""

import pytest

import flowplug as fp


def test_bad_frequency():
    with pytest.raises(ValueError, match="positive; got 0"):
        fp.Sine(0.0)
