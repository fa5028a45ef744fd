"""What tests of the examples share: a user's defaults, and a table to train on."""

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _as_users_run_them(users_defaults):
    pass


@pytest.fixture
def table(tmp_path):
    """A table of 6 correlated features: a residual transform trains on a random estimate of its log-det."""
    x = torch.randn(700, 6)
    x[:, 1:] += torch.sin(2 * x[:, :-1])
    np.savez(tmp_path / "table.npz", train=x[:500].numpy(), val=x[500:600].numpy(), test=x[600:].numpy())
    return tmp_path / "table.npz"
