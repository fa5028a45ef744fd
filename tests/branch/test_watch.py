"""A bound that nothing keeps below 1 is measured while it trains."""

import copy
import warnings
from collections.abc import Sized

import pytest
import torch
from torch import nn

import flowplug as fp
from flowplug.branch import Watch
from helpers import BRANCHES as OTHERS
from helpers import event, sequential


def plain(scale=0.5):
    layer = nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight.mul_(scale / torch.linalg.matrix_norm(layer.weight, 2))
    return layer


def transform_of(g, **keywords):
    with pytest.warns(fp.UnboundedBranchWarning, match=r"nothing keeps the bound of g = \w+ below 1"):
        return fp.ResidualTransform(g, **keywords)


@pytest.mark.parametrize("logdet", [None, fp.Krylov(), fp.ExactLogDet()])
@pytest.mark.parametrize("make", [plain, lambda: nn.Sequential(plain(), nn.Tanh())])
def test_one_that_grew_is_refused_in_train_mode(make, logdet):
    g = make()
    transform = transform_of(g, logdet=logdet)
    transform(torch.randn(3, 8))
    with torch.no_grad():
        next(g.parameters()).mul_(-4)
    with pytest.raises(
        fp.LipschitzError, match=r"has the Lipschitz bound 2 in the 2-norm; x \+ g\(x\) needs one below 1"
    ):
        transform(torch.randn(3, 8))


@pytest.mark.parametrize("at", [1, 100, 1000])
def test_at_any_time_of_training(at):
    g = plain()
    transform = transform_of(g, logdet=lambda branch, x, noise: (branch(x), x.sum(1)))

    def passes(count):
        for _ in range(count):
            transform(torch.randn(1, 8))

    passes(at)
    with torch.no_grad():
        g.weight.mul_(4)
    with pytest.raises(fp.LipschitzError, match="needs one below 1"):
        passes(128)


def test_how_often_it_is_measured():
    watch = Watch()
    watch._kept = False
    assert [n for n in range(1, 520) if watch.due()] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 384, 512]


def test_the_warning_comes_once_and_copies_go_on():
    transform = copy.deepcopy(transform_of(plain()))
    for training in (True, False, True):
        transform.train(training)(torch.randn(3, 8))


@pytest.mark.parametrize(
    "make",
    [
        lambda: fp.LipschitzMLP(3),
        lambda: fp.LipschitzMLP(3, norm=fp.Gram(), activation=fp.LipSwish),
        lambda: fp.LipschitzMLP(3, norm=fp.PowerIteration(), activation=nn.PReLU),
        lambda: fp.LipschitzDenseNet(3),
        sequential,
        lambda: nn.Sequential(sequential(), nn.Identity()),
        *(make for name, make in OTHERS.items() if name in ("none", "tanh", "image", "three hidden layers")),
    ],
)
def test_bounds_kept_by_construction_are_left_alone(make, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        g = make()
        transform = fp.ResidualTransform(g, logdet=fp.ExactLogDet())
    monkeypatch.setattr(fp.Branch, "lipschitz_bound", lambda branch: pytest.fail("the bound was measured"))
    transform(torch.randn(5, *(event(g))))


def test_layers_that_may_reach_1_are_watched():
    g = nn.Sequential(fp.LipschitzLinear(3, 3, bound=1.2), nn.Tanh(), fp.LipschitzLinear(3, 3, bound=1.2))
    with torch.no_grad():
        g[0].weight.mul_(0.5)
    assert float(fp.lipschitz_bound(g)) == pytest.approx(0.5)
    assert fp.lipschitz_bound(g).limit == pytest.approx(1.44)
    with pytest.warns(fp.UnboundedBranchWarning):
        fp.ResidualTransform(g)


class TestLimit:
    def test_a_number_of_a_module_without_parameters_is_its_limit(self):
        assert fp.lipschitz_bound(nn.Tanh()).limit == 1
        assert fp.lipschitz_bound(nn.Sequential(nn.Sigmoid(), nn.ELU(2.0))).limit == 0.5

    def test_of_parameters_there_is_none_unless_declared(self):
        assert fp.lipschitz_bound(nn.PReLU()).limit == float("inf")
        assert fp.lipschitz_bound(nn.Linear(2, 2)).limit == float("inf")
        assert fp.lipschitz_bound(fp.CLipSwish()).limit == 1
        assert fp.lipschitz_bound(fp.LipschitzLinear(2, 2, bound=0.3)).limit == 0.3
        assert fp.lipschitz_bound(fp.LipschitzMLP(2, bound=0.8)).limit == 0.8


@pytest.mark.slow
@pytest.mark.usefixtures("users_defaults")
@pytest.mark.filterwarnings("ignore")  # those of dynamo about what it traces
def test_a_compiled_step_is_not_compiled_anew_for_every_pass():
    torch._dynamo.reset()
    transform = fp.ResidualTransform(plain(), logdet=fp.Krylov(terms=fp.Truncated(2)))
    compiled = torch.compile(transform, backend="aot_eager")
    for _ in range(3):  # the passes that measure, and those that do not
        compiled(torch.randn(4, 8))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(7):
            Sized.register(type("Other", (), {}))  # a library loads, and singledispatch counts it
            compiled(torch.randn(4, 8))
    assert transform._watch._passes == 10
