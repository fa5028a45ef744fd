"""Training steps replayed as CUDA graphs have the numbers of eager ones."""

import pytest
import torch

import flowplug as fp

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use")

TRANSFORMS = {
    "residual": lambda: fp.ResidualTransform(fp.LipschitzMLP(6, (16,))),
    "wide residual": lambda: fp.ResidualTransform(fp.LipschitzMLP(63, (80,))),
    "narrow layer": lambda: fp.ResidualTransform(fp.LipschitzMLP(80, (32,))),
    "dense": lambda: fp.DenseTransform(63),
    "marginals": lambda: fp.MarginalGaussianization(6),
    "composed": lambda: fp.ComposedTransform(
        fp.Whitening(24), fp.DenseTransform(24), fp.ActNorm(24), fp.ResidualTransform(fp.LipschitzMLP(24, (32,)))
    ),
}


def gradients(transform, x, call):
    transform.zero_grad()
    y, ladj = call(x)
    (y.square().mean() + ladj.mean()).backward()
    return [y.detach().clone(), ladj.detach().clone(), *(p.grad.clone() for p in transform.parameters())]


@pytest.fixture
def wide():
    """A transform whose log-dets are left to MAGMA, after its start, and rows."""
    transform, x = fp.ResidualTransform(fp.LipschitzMLP(24, (32,)), logdet=fp.ExactLogDet()), torch.randn(40, 24)
    gradients(transform.cuda(), x.cuda(), transform)
    return transform, x.cuda()


@pytest.mark.filterwarnings("ignore")  # those of the compiler about what it traces
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_compiled_step_is_replayed(name):
    transform = TRANSFORMS[name]().cuda()
    x = torch.randn(512, *transform.event_shape, device="cuda")
    transform(x)
    torch.compiler.reset()
    compiled = torch.compile(transform, mode="reduce-overhead")
    for factor in (1.0, 0.9, 1.1, 0.8):
        got = gradients(transform, factor * x, compiled)
    for a, b in zip(got, gradients(transform, factor * x, transform), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.has_magma, reason="this torch leaves nothing to MAGMA")
class TestMagma:
    def test_it_refuses_to_be_captured(self, wide):
        transform, x = wide
        with pytest.raises(fp.CaptureError, match="width 24 > 16"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            transform(x)

    def test_another_library_is_captured(self, wide):
        transform, x = wide
        before = torch.backends.cuda.preferred_linalg_library()
        torch.backends.cuda.preferred_linalg_library("cusolver")
        try:
            gradients(transform, x, transform)
            transform.zero_grad(set_to_none=True)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                _, ladj = transform(x)
                ladj.mean().backward()
            x.mul_(0.5)
            graph.replay()
            torch.testing.assert_close(ladj, transform(x)[1], rtol=1e-4, atol=1e-4)
        finally:
            torch.backends.cuda.preferred_linalg_library(before)
