"""The exact log-det of a linear branch."""

import math

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._functorch.aot_autograd import aot_module_simplified

import flowplug as fp
from flowplug.logdet import _exact
from helpers import Scale


@pytest.mark.parametrize("a", [-0.98, -0.5, 0.5, 0.9])
def test_exact(a, eps):
    transform, x = fp.ResidualTransform(Scale(a), logdet=fp.ExactLogDet()), torch.randn(5, 3)
    ladj = transform(x)[1]
    torch.testing.assert_close(ladj, torch.full((5,), 3 * math.log1p(a)), atol=1000 * eps, rtol=0)
    weights = torch.linspace(0, 1, 5)
    (gradient,) = torch.autograd.grad(weights @ ladj, transform.g.a)
    torch.testing.assert_close(gradient, weights.sum() * 3 / (1 + a), atol=0, rtol=1000 * eps)


class TestMagma:
    """Here without it: what of its batches is left out of graphs, or refused."""

    def test_what_is_left_out_of_graphs_has_the_numbers_of_eager(self, monkeypatch, eps):
        flow, x = fp.ResidualTransform(fp.LipschitzMLP(20, (24,)), logdet=fp.ExactLogDet()), torch.randn(5, 20)
        torch.compiler.reset()
        operators = []

        def backend(graph, inputs):
            def seen(inner, _):
                operators.extend(str(node.target) for node in inner.graph.nodes)
                return make_boxed_func(inner.forward)

            return aot_module_simplified(graph, inputs, fw_compiler=seen, bw_compiler=seen)

        def gradients(call):
            flow.zero_grad()
            call(x)[1].square().sum().backward()
            return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in flow.parameters()]

        wanted = gradients(flow)
        monkeypatch.setattr(_exact, "_left_to_magma", lambda _: True)
        got = gradients(torch.compile(flow, backend=backend, fullgraph=True))
        assert "flowplug.lu_factor.default" in operators
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e4 * eps, atol=1e4 * eps)

    @pytest.mark.parametrize(
        ("rows", "width", "refused"),
        [(40, 16, False), (40, 17, True), (16, 128, False), (17, 128, True), (2, 129, True), (1, 129, False)],
    )
    def test_captures_are_refused(self, monkeypatch, rows, width, refused):
        """By torch's own choice of a library."""
        monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
        monkeypatch.setattr(torch.cuda, "has_magma", True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        matrices = torch.eye(width).expand(rows, width, width)
        if refused:
            with pytest.raises(fp.CaptureError, match=f"{rows} rows by matrices of width {width}"):
                _exact._logabsdet(matrices)
        else:
            assert not _exact._logabsdet(matrices).any()
