"""Values on a grid, and the histogram that started from them, for the tests of it."""

import copy

import torch

import flowplug as fp


def grey(rows, levels=256):
    """One value, 90 % one value, two heaps with nothing between, a bell; dequantised."""
    top = levels - 1
    heaps = torch.where(
        torch.rand(rows) < 0.5, torch.randint(1 + top // 8, (rows,)), top - torch.randint(1 + top // 8, (rows,))
    )
    columns = [
        torch.zeros(rows),
        torch.where(torch.rand(rows) < 0.9, 0, torch.randint(levels, (rows,))),
        heaps,
        (torch.randn(rows) * levels / 12 + levels / 2).round().clamp(0, top),
    ]
    return (torch.stack(columns, 1) + torch.rand(rows, 4)) / levels


def started(features=4, rows=12000, **keywords):
    transform = fp.HistogramGaussianization(features, **keywords)
    transform.start(grey(rows, keywords.get("levels", 256)))
    return transform.eval()


def slopes(transform, x):
    """Derivatives of the map, in double precision."""
    exact = copy.deepcopy(transform).double()
    x = x.detach().double().clone().requires_grad_()
    return torch.autograd.grad(exact(x)[0].sum(), x)[0]
