"""Transforms that are right when tried, and wrong in a way of running, after a write or at the edge of the data."""

import pytest
import torch
from torch import nn

import flowplug as fp
from flowplug.testing import LAWS, WAYS, Case, ConformanceError, check_cell


@pytest.fixture(autouse=True)
def _sharp():
    """In single precision rounding hides some of them."""
    torch.set_default_dtype(torch.float64)


class Linear(nn.Module):
    """A right transform, y = W x; each mutant overrides one thing."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3) + 0.1 * torch.randn(3, 3))

    def forward(self, x, context=None):
        return self.map(x), self.ladj(x)

    def inverse(self, y, context=None):
        return self.unmap(y), -self.ladj(y)

    def map(self, x):
        return (self.weight @ x.unsqueeze(-1)).squeeze(-1)

    def unmap(self, y):
        return torch.linalg.solve(self.weight, y.unsqueeze(-1)).squeeze(-1)

    def ladj(self, x):
        return self.logabsdet() + 0 * x.sum(-1)

    def logabsdet(self):
        return torch.linalg.slogdet(self.weight).logabsdet


class StaleLogDet(Linear):
    """Kept until the version counter moves."""

    kept = None

    def ladj(self, x):
        if torch.is_grad_enabled():
            return super().ladj(x)
        if self.kept is None or self.kept[0] != (id(self.weight), self.weight._version):
            self.kept = (id(self.weight), self.weight._version), self.logabsdet().detach().clone()
        return self.kept[1].to(x) + 0 * x.sum(-1)


class LogDetAtConstruction(Linear):
    def __init__(self):
        super().__init__()
        self.kept = self.logabsdet().item()

    def ladj(self, x):
        return super().ladj(x) - self.logabsdet().detach() + self.kept


class InverseByMatrix(Linear):
    """Under autocast, a product in half precision."""

    def unmap(self, y):
        return y @ torch.linalg.inv(self.weight).T


class SharedMemory(Linear):
    def ladj(self, x):
        return self.logabsdet().expand(x.shape[:-1])


class Flip(torch.autograd.Function):
    """The identity; mapped over rows, it exchanges them."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad

    @staticmethod
    def vmap(info, in_dims, x):
        return x.flip(in_dims[0]), in_dims[0]


class ReadsItsWeights(Linear):
    def logabsdet(self):
        return super().logabsdet() if self.weight[0, 0] else self.weight.diagonal().log().sum()


class MadeOnTheDefaultDevice(Linear):
    def map(self, x):
        return super().map(x) * torch.ones(3, dtype=x.dtype)


class MixesRows(Linear):
    def map(self, x):
        return super().map(Flip.apply(x))


class DetachedWhenCompiled(Linear):
    def ladj(self, x):
        ladj = super().ladj(x)
        return ladj.detach() if torch.compiler.is_compiling() else ladj


class OwnAutograd(Linear):
    """Differentiates on its own, on a detached copy."""

    def ladj(self, x):
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            torch.autograd.grad((point * self.weight.sum()).sum(), point)
        return super().ladj(x)


class NanOnTheWay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.nan


class MaskedNan(Linear):
    def ladj(self, x):
        if not self.weight.requires_grad or not torch.is_grad_enabled():
            return super().ladj(x)
        weight = self.weight.clone()
        weight.register_hook(torch.zeros_like)
        return super().ladj(x) + 0 * NanOnTheWay.apply(weight).sum()


class OldParameter(Linear):
    """Reads the parameter that it was made with, which sharding replaces."""

    def __init__(self):
        super().__init__()
        self.made_with = (self.weight,)

    def logabsdet(self):
        return torch.linalg.slogdet(self.made_with[0]).logabsdet


class UnusedInForward(Linear):
    """DistributedDataParallel waits for the gradient of every parameter."""

    def __init__(self):
        super().__init__()
        self.other = nn.Parameter(torch.zeros(()))
        self.forward_calls = 0

    def unmap(self, y):
        return super().unmap(y) + self.other


class OutsideTheCheckpoint(Linear):
    """Its noise is that of ``fixed_noise`` at the time of the call, which a recomputation comes after."""

    def ladj(self, x):
        generator = fp.Noise(noise_seed()).generator(x.device)
        noise = torch.randn(x.shape[:-1], generator=generator, dtype=x.dtype, device=x.device)
        return super().ladj(x) + noise * (self.weight.sum() - self.weight.sum().detach())


def noise_seed():
    """What a transform of a user's own sees of ``fixed_noise``: whether draws repeat."""
    seen = fp.ResidualTransform(fp.LipschitzMLP(3, (4,)), logdet=Spy())
    seen(torch.zeros(1, 3))
    return seen.logdet.seeds[-1]


class Spy:
    def __init__(self):
        self.seeds = []

    def __call__(self, branch, x, noise):
        generator = noise.generator("cpu")
        self.seeds.append(None if generator is None else torch.tensor(3))
        return branch(x), x.new_zeros(len(x))


class NoEmptyBatch(Linear):
    def map(self, x):
        return super().map(x) + 0 * x.amax()


class NeedsContiguous(Linear):
    def map(self, x):
        return super().map(x.view(-1).view(x.shape))


class Overflows(Linear):
    def ladj(self, x):
        return super().ladj(x) + 0 * x.exp().sum(-1)


class Estimate(Linear):
    """Log-dets with noise that is fixed in eval mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seed", torch.randint(2**31, ()))

    def noise(self, x, generator):
        raise NotImplementedError

    def ladj(self, x):
        generator = None if self.training else torch.Generator(x.device).manual_seed(int(self.seed))
        return super().ladj(x) + 0.1 * self.noise(x, generator)


class NoiseByPosition(Estimate):
    def noise(self, x, generator):
        return torch.randn(x.shape[:-1], generator=generator, dtype=x.dtype, device=x.device)


class NoiseInCommon(Estimate):
    def noise(self, x, generator):
        return torch.randn((), generator=generator, dtype=x.dtype, device=x.device) + 0 * x.sum(-1)


class NoiseByHash(Estimate):
    def noise(self, x, generator):
        return torch.sin(1e12 * x.detach().sum(-1) + self.seed)


class Curved(nn.Module):
    """A right transform, y = x + tanh(W x) / 2."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(3, 3))

    def jacobian(self, x):
        slope = 1 - (x @ self.weight.T).tanh().square()
        return torch.eye(3).to(x) + slope.unsqueeze(-1) * self.weight / 2

    def forward(self, x, context=None):
        return x + (x @ self.weight.T).tanh() / 2, self.ladj(self.jacobian(x))

    def ladj(self, matrix):
        return torch.linalg.slogdet(matrix).logabsdet


class ConstantInverse(Curved):
    """The gradient of a log-det as a trace with an inverse that is constant: right once."""

    def ladj(self, matrix):
        trace = (torch.linalg.inv(matrix).mT.detach() * matrix).sum((-1, -2))
        return super().ladj(matrix).detach() + trace - trace.detach()


class Contraction(nn.Module):
    """g of the next two."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        nn.init.constant_(self.layer.weight, 0.2)

    def forward(self, x):
        return self.layer(x).tanh()


class Bypass(Contraction):
    """Whatever was hooked to the layer is not called."""

    def forward(self, x):
        return nn.functional.linear(x, self.layer.weight, self.layer.bias).tanh()


@fp.lipschitz_bound.register
def _(module: Contraction) -> fp.LipschitzBound:
    return fp.LipschitzBound(module.layer.weight.abs().sum(1).amax(), torch.inf, limit=0.9)


class IgnoresHooks(fp.ResidualTransform):
    """Its certificate is that of the weights, whatever is hooked to their layer."""

    def __init__(self, g=Contraction):
        super().__init__(g())

    @property
    def lipschitz(self):
        return fp.LipschitzBound(self.g.layer.weight.abs().sum(1).amax(), torch.inf, limit=0.9)

    def _forward(self, x, context):
        return x + self.g(x), x.new_zeros(x.shape[:-1])


class BypassesHooks(IgnoresHooks):
    def __init__(self):
        super().__init__(Bypass)


class Standardized(nn.Module):
    """Starts from the first batch, however small; a mutant says how."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("weight", torch.eye(3))
        self.register_buffer("inverse_weight", torch.eye(3))
        self.register_buffer("started", torch.zeros(()))

    def forward(self, x, context=None):
        if self.training and len(x) and not self.started:
            self.start(x.detach())
            self.started.fill_(1)
        return (x - self.mean) @ self.weight, torch.linalg.slogdet(self.weight).logabsdet + 0 * x.sum(-1)

    def inverse(self, y, context=None):
        return y @ self.inverse_weight + self.mean, -torch.linalg.slogdet(self.weight).logabsdet + 0 * y.sum(-1)

    def start(self, x):
        scale = x.std(0, correction=0)
        self.keep(x, torch.where(scale > 0, scale, 1.0).diag())

    def keep(self, x, root):
        self.mean.copy_(x.mean(0))
        self.weight.copy_(torch.linalg.inv(root))
        self.inverse_weight.copy_(root)


class RuinedByTwoRows(Standardized):
    pass


class TwinBuffers(Standardized):
    """Two buffers of which one is the inverse of the other: averages of them are not."""


class RawCovariance(Standardized):
    """Shrinks the covariance towards the mean variance, whatever the units."""

    def start(self, x):
        variances, directions = torch.linalg.eigh((x - x.mean(0)).T @ (x - x.mean(0)) / len(x))
        scales = (0.99 * variances.clamp(min=0) + 0.01 * variances.mean()).sqrt()
        self.keep(x, directions * scales @ directions.T)


CAUGHT_BY = [
    (StaleLogDet, "written weights", "eager"),
    (StaleLogDet, "same numbers", "dtype there and back"),
    (LogDetAtConstruction, "written weights", "eager"),
    (InverseByMatrix, "same numbers", "autocast"),
    (SharedMemory, "inputs left alone", "eager"),
    (MixesRows, "same numbers", "vmap"),
    (ReadsItsWeights, "same numbers", "ensemble"),
    (MadeOnTheDefaultDevice, "same numbers", "another default device"),
    (DetachedWhenCompiled, "same numbers", "compiled"),
    (OwnAutograd, "same numbers", "inference mode"),
    (OwnAutograd, "same numbers", "torch.func"),
    (MaskedNan, "same numbers", "anomaly mode"),
    (OldParameter, "same numbers", "FSDP"),
    (UnusedInForward, "same numbers", "DDP"),
    (OutsideTheCheckpoint, "fixed noise", "checkpointed"),
    (NoEmptyBatch, "layouts", "eager"),
    (NeedsContiguous, "layouts", "eager"),
    (Overflows, "scales", "eager"),
    (NoiseByPosition, "evaluation noise", "eager"),
    (NoiseInCommon, "evaluation noise", "eager"),
    (NoiseByHash, "evaluation noise", "eager"),
    (ConstantInverse, "second derivatives", "eager"),
    (IgnoresHooks, "honest certificate", "eager"),
    (BypassesHooks, "honest certificate", "eager"),
    (RuinedByTwoRows, "start from few rows", "eager"),
    (TwinBuffers, "round trip", "averaged with buffers"),
    (RawCovariance, "start in any units", "eager"),
]


def case(make):
    return Case(lambda **keywords: make(**keywords), torch.randn(4, 3))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("law", LAWS)
def test_the_unchanged_map_obeys(law, way):
    reason = check_cell(law, way, case(Linear))
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("law", ["value of the ladj", "gradient of the ladj", "second derivatives"])
def test_the_unchanged_curved_map_obeys(law):
    assert check_cell(law, "eager", case(Curved)) is None


@pytest.mark.parametrize("mutant", [StaleLogDet, InverseByMatrix, MixesRows, MaskedNan, OldParameter, OwnAutograd])
def test_a_mutant_of_a_way_is_right_eagerly(mutant):
    assert check_cell("same numbers", "eager", case(mutant)) is None


@pytest.mark.parametrize(("mutant", "law", "way"), CAUGHT_BY)
def test_mutant_is_caught(mutant, law, way):
    with pytest.raises(ConformanceError):
        check_cell(law, way, case(mutant))
