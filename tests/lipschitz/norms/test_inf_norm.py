"""The inf-norm: rows one by one."""

import torch

import flowplug as fp


def test_inf_norm_shrinks_row_by_row(eps):
    weight = torch.tensor([[3.0, -1.0], [0.25, 0.25]])
    projected = fp.InfNorm().project(weight, 0.8)
    torch.testing.assert_close(projected, torch.tensor([[0.6, -0.2], [0.25, 0.25]]), atol=4 * eps, rtol=0)
