"""What follows from tensors is found again once they have changed, and not before."""

import pickle

import pytest
import torch
from torch import nn

import flowplug as fp
from flowplug._memory import Memory


class TestMemory:
    def remember(self):
        self.calls = 0

        def compute():
            self.calls += 1
            return float(sum(t.sum() for t in self.tensors))

        return lambda settings=None: self.memory(self.tensors, settings, compute)

    def setup_method(self):
        self.memory = Memory()
        self.tensors = [
            torch.randn(3, 4, dtype=torch.float64),
            torch.randn(2, 3, 2, 2),
            torch.randn(3),
            torch.arange(4),
        ]

    def test_once_while_nothing_changes(self):
        call = self.remember()
        assert call() == call()
        assert self.calls == 1

    @pytest.mark.parametrize("which", range(4))
    def test_any_entry_counts(self, which):
        call = self.remember()
        for i in range(self.tensors[which].numel()):
            call()
            with torch.no_grad():
                self.tensors[which].view(-1).data[i] += 1
        call()
        assert self.calls == 1 + self.tensors[which].numel()

    def test_settings_dtypes_shapes_and_numbers_count(self):
        call = self.remember()
        call()
        call("other")
        self.tensors[0] = self.tensors[0].float()
        call("other")
        self.tensors[0] = self.tensors[0].T
        call("other")
        self.tensors.pop()
        call("other")
        assert self.calls == 5

    def test_copies_start_empty(self):
        self.remember()()
        assert pickle.loads(pickle.dumps(self.memory))._kept is None


class TestNetworks:
    def test_norms_are_taken_once(self, monkeypatch):
        calls, project = [], fp.Gram.project_all
        monkeypatch.setattr(fp.Gram, "project_all", lambda *given: calls.append(1) or project(*given))
        transform, x = fp.ResidualTransform(fp.LipschitzCNN(2, (4,))).eval(), torch.randn(3, 2, 5, 5)
        calls.clear()
        with torch.no_grad():
            transform.chunk_size = 2 * 4 * 25  # in pieces
            first = transform(x)
            counted = len(calls)
            assert torch.equal(transform(x)[0], first[0])
            transform.inverse(x)
        assert len(calls) == counted == 1
        nn.init.orthogonal_(transform.g.layers[0].weight.data, 3.0)
        with torch.no_grad():
            assert not torch.equal(transform(x)[0], first[0])
        assert len(calls) == 2
        assert float(transform.lipschitz) <= 0.97 * (1 + 1e-5)

    def test_a_bound_that_is_changed_counts(self):
        g = fp.LipschitzMLP(3, (4,), norm=fp.Gram())
        with torch.no_grad():
            for layer in g.layers:
                layer.weight.mul_(10)
            before = float(fp.lipschitz_bound(g))
            for layer in g.layers:
                layer.bound /= 2
            assert float(fp.lipschitz_bound(g)) == pytest.approx(before / 4)

    def test_what_a_caller_gets_may_be_written_on(self):
        g, x = fp.LipschitzMLP(3, (4,), norm=fp.Gram()), torch.randn(5, 3)
        with torch.no_grad():
            wanted = g(x)
            for weight in g.bounded_weights():
                weight.zero_()
            assert torch.equal(g(x), wanted)

    def test_a_norm_that_may_change_is_not_remembered(self):
        class Scaled(fp.OperatorNorm):
            factor = 1.0

            def orders(self):
                return 2.0, 2.0

            def measure(self, weight):
                return self.factor * torch.linalg.vector_norm(weight)

        norm = Scaled()
        g = fp.LipschitzMLP(3, (4,), norm=norm)
        with torch.no_grad():
            for layer in g.layers:
                layer.weight.mul_(10)
            before = g.bounded_weights()[0].norm()
            norm.factor = 2.0
            assert float(g.bounded_weights()[0].norm()) == pytest.approx(float(before) / 2)

    @pytest.mark.parametrize("around", [torch.inference_mode, torch.no_grad])
    def test_what_is_remembered_serves_with_gradients_later(self, around):
        transform, x = fp.ResidualTransform(fp.LipschitzMLP(3, (4,), norm=fp.Gram())).eval(), torch.randn(5, 3)
        with around():
            transform(x)
        y, ladj = transform(x.requires_grad_())
        (y.sum() + ladj.sum()).backward()
        assert all(layer.weight.grad is not None for layer in transform.g.layers)
