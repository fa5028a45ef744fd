"""A training step on a GPU reads none of its numbers: here on tensors without numbers, which say they are of one."""

from contextlib import nullcontext

import pytest
import torch

from cases import ADAPTERS, CORE
from flowplug._reading import Later
from flowplug._start import FromData

WAITS = {
    "Inverse": "a numerical inverse runs until every row has converged",
    "Inverse squeezed": "as that of Inverse",
    "Krylov converged": "a series runs until every row has converged",
    "PowerSeries Certified": "the number of terms follows from the bound as it is",
    "normflows own CNN": "the host's layers look at their own norms",
    "zuko stochastic": "noise that is fixed in train mode has a generator of the device, which this one has not",
}
ROWS = {**CORE, **ADAPTERS}


@pytest.fixture
def _gpu(monkeypatch):
    """The device meta passes for a GPU; what would be asked of CUDA itself is left out."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: tensor.device.type == "meta"), raising=False)
    monkeypatch.setattr(Later, "require", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _: torch.get_rng_state())
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: torch.bfloat16)


def step(transform, x, context):
    y, ladj = transform(x, context)
    loss = y.square().mean() + ladj.mean()
    if loss.requires_grad:
        loss.backward()


def moved(transform):
    """To the device, after its start, and with what a pass has learned there of that."""
    transform.to("meta")
    for part in transform.modules():
        if isinstance(part, FromData):
            part._over = part.started
    return transform


@pytest.mark.usefixtures("_gpu")
@pytest.mark.filterwarnings("ignore")  # of starts and bounds
@pytest.mark.parametrize("name", [name for name in ROWS if name not in WAITS])
def test_a_step_waits_for_nothing(name):
    row = ROWS[name]
    transform = row.make()
    transform(*row.inputs(300))
    for _ in range(3):  # in which bounds are looked at
        step(transform, *row.inputs())
    x, context = (None if part is None else part.to("meta") for part in row.inputs())
    step(moved(transform), x, context)
