"""Sixteen wrong adapters, each of which the harness must catch, and by the law that is about it."""

import pytest
import torch
from torch import nn

import flowplug as fp
from cases import residual
from flowplug.testing import LAWS, Case, ConformanceError, check_cell


class Wrapper(nn.Module):
    """A right adapter; each mutant overrides one thing."""

    def __init__(self, **keywords):
        super().__init__()
        self.core = residual(context_features=2, **keywords)

    def forward(self, x, context=None):
        return self.core(x, context)

    def inverse(self, y, context=None):
        return self.core.inverse(y, context)


class ChangedLadj(Wrapper):
    def change(self, ladj):
        raise NotImplementedError

    def forward(self, x, context=None):
        y, ladj = super().forward(x, context)
        return y, self.change(ladj)

    def inverse(self, y, context=None):
        x, ladj = super().inverse(y, context)
        return x, self.change(ladj)


class WrongSign(Wrapper):
    def inverse(self, y, context=None):
        x, ladj = super().inverse(y, context)
        return x, -ladj


class DetachedInverse(Wrapper):
    def inverse(self, y, context=None):
        x, ladj = super().inverse(y, context)
        return x.detach() + (y - y.detach()), ladj


class InverseWithoutFactor(Wrapper):
    def inverse(self, y, context=None):
        with fp.no_logdet(), torch.no_grad():
            x = self.core.inverse(y, context)[0]
        x = y - self.core.g(x, context)
        return x, -self.core(x, context)[1]


class FreshNoise(ChangedLadj):
    def change(self, ladj):
        return ladj + 0.1 * torch.randn_like(ladj)


class Column(ChangedLadj):
    def change(self, ladj):
        return ladj.unsqueeze(-1)


class Zero(ChangedLadj):
    def change(self, ladj):
        return 0 * ladj


class Half(ChangedLadj):
    def change(self, ladj):
        return ladj / 2


class Summed(ChangedLadj):
    def change(self, ladj):
        return ladj.sum().expand(ladj.shape).clone()


class Detached(ChangedLadj):
    def change(self, ladj):
        return ladj.detach()


class MarksInput(Wrapper):
    def forward(self, x, context=None):
        return super().forward(x.requires_grad_(), context)


class MutatesInput(Wrapper):
    def forward(self, x, context=None):
        y, ladj = super().forward(x.clone(), context)
        with torch.no_grad():
            x += 0.5
        return y, ladj


class LooseSolver(Wrapper):
    def __init__(self, **keywords):
        super().__init__(solver=fp.FixedPoint(tol=0.03), **keywords)  # a step below 1e-3, as L = 0.97


class IgnoresContext(Wrapper):
    def forward(self, x, context=None):
        return super().forward(x, torch.zeros_like(context))

    def inverse(self, y, context=None):
        return super().inverse(y, torch.zeros_like(context))


class Jitter(Wrapper):
    def forward(self, x, context=None):
        y, ladj = super().forward(x, context)
        return y + 1e-4 * torch.randn_like(y), ladj


class UnusedParameter(Wrapper):
    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.unused = nn.Parameter(torch.zeros(()))


class SinglePrecision(ChangedLadj):
    def change(self, ladj):
        return ladj.to(torch.float32)


CAUGHT_BY = {
    WrongSign: "ladj of the inverse",
    DetachedInverse: "derivative of the inverse",
    InverseWithoutFactor: "derivative of the inverse",
    FreshNoise: "ladj of the inverse",
    Column: "shape and dtype",
    Zero: "value of the ladj",
    Half: "value of the ladj",
    Summed: "value of the ladj",
    Detached: "gradient of the ladj",
    MarksInput: "inputs left alone",
    MutatesInput: "inputs left alone",
    LooseSolver: "round trip",
    IgnoresContext: "every parameter",
    Jitter: "round trip",
    UnusedParameter: "every parameter",
    SinglePrecision: "shape and dtype",
}


class Flattened(fp.Transform):
    """Says nothing of the shape it returns."""

    event_dim = 3

    def _forward(self, x, context):
        return x.flatten(-3), x.new_zeros(x.shape[:-3])

    def _inverse(self, y, context):
        return y.reshape(*y.shape[:-1], 1, 2, 4), y.new_zeros(y.shape[:-1])


class FlattenedToOne(Flattened):
    """Says nothing of the sizes."""

    latent_dim = 1


def case(make):
    return Case(make, torch.randn(4, 3), torch.randn(4, 2))


@pytest.mark.parametrize("law", LAWS)
def test_the_unchanged_wrapper_obeys(law):
    reason = check_cell(law, "eager", case(Wrapper))
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("mutant", CAUGHT_BY)
def test_mutant_is_caught(mutant):
    assert len(CAUGHT_BY) == 16
    with pytest.raises(ConformanceError):
        LAWS[CAUGHT_BY[mutant]](case(mutant))


@pytest.mark.parametrize(
    ("mutant", "message"),
    [
        (Flattened, r"inverse takes events of 3 dimension\(s\); got \(8,\)"),
        (FlattenedToOne, r"say \(3, 1, \(1, 2, 4\), \(8,\)\); they are \(3, 1, \(8,\), \(1, 2, 4\)\)"),
    ],
)
def test_shapes_that_are_not_stated_are_found(mutant, message):
    with pytest.raises(ConformanceError, match=rf"law 'shape and dtype', eager: .*{message}"):
        check_cell("shape and dtype", "eager", Case(mutant, torch.randn(4, 1, 2, 4)))
