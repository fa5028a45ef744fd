"""Flags of a GPU are looked at once they are known, without waiting; here with events that pretend to be late."""

import copy
import pickle

import pytest
import torch

import flowplug as fp
from flowplug._reading import Later


class Event:
    """One that is done after as many questions as ``delay``."""

    delay = 0

    def __init__(self):
        self.left = self.delay

    def record(self, stream=None):
        del stream

    def query(self):
        self.left -= 1
        return self.left < 0


@pytest.fixture
def later(monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return Later()


GOOD, BAD = torch.ones((), dtype=torch.bool), torch.zeros((), dtype=torch.bool)


def test_an_error_is_raised_by_the_next_pass(later):
    later.require(GOOD, "one", fp.NonFiniteError)
    later.require(BAD, "two", fp.SingularMatrixError)
    with pytest.raises(fp.SingularMatrixError, match="two"):
        later.require(GOOD, "three", fp.NonFiniteError)
    later.require(GOOD, "four", fp.NonFiniteError)


def test_what_is_not_known_yet_is_not_waited_for(later, monkeypatch):
    monkeypatch.setattr(Event, "delay", 2)
    later.require(BAD, "one", fp.NonFiniteError)
    later.require(GOOD, "two", fp.NonFiniteError)
    later.require(GOOD, "three", fp.NonFiniteError)
    with pytest.raises(fp.NonFiniteError, match="one"):
        later.require(GOOD, "four", fp.NonFiniteError)


def test_nothing_is_kept_while_a_graph_is_captured(later, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    later.require(BAD, "one", fp.NonFiniteError)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    later.require(GOOD, "two", fp.NonFiniteError)


def test_flags_are_read_whatever_the_default_device(later):
    with torch.device("meta"):
        later.require(BAD, "one", fp.NonFiniteError)
    with pytest.raises(fp.NonFiniteError, match="one"):
        later.require(GOOD, "two", fp.NonFiniteError)


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda later: pickle.loads(pickle.dumps(later))])
def test_copies_start_empty(later, twin):
    later.require(BAD, "one", fp.NonFiniteError)
    twin(later).require(GOOD, "two", fp.NonFiniteError)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use")
class TestGPU:
    @pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # that torch says it may change
    def test_a_step_waits_for_nothing(self):
        flow = fp.ResidualStack(6, 2, (16,)).cuda()
        x = torch.randn(200, 6, device="cuda")
        flow(x)[1].sum().backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            flow(x)[1].sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_nan_is_named_by_the_next_pass(self):
        transform, x = fp.DenseTransform(3).cuda(), torch.randn(4, 3, device="cuda")

        def two_passes():
            transform(x * torch.nan)  # which raises itself where the GPU is quick
            torch.cuda.synchronize()
            transform(x)

        with pytest.raises(fp.NonFiniteError, match="DenseTransform: the input of the last pass"):
            two_passes()

    def test_roulettes_refuse_to_be_captured(self):
        transform, x = fp.ResidualTransform(fp.LipschitzMLP(3), logdet=fp.Krylov()).cuda(), torch.randn(64, 3).cuda()
        transform(x)
        with pytest.raises(fp.CaptureError), torch.cuda.graph(torch.cuda.CUDAGraph()):
            transform(x)

    def test_an_exact_step_is_replayed(self):
        flow = fp.ResidualStack(6, 2, (16,), logdet=fp.ExactLogDet()).cuda()
        static = torch.randn(200, 6, device="cuda")
        for _ in range(3):
            flow(static)[1].mean().backward()
        flow.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = flow(static)[1].mean()
            loss.backward()
        x = torch.randn(200, 6, device="cuda")
        static.copy_(x)
        graph.replay()
        torch.testing.assert_close(loss, flow(x)[1].mean())
