"""Certificates: known or refused, composed from norm to norm, registered by users."""

import abc
import math

import pytest
import torch
from torch import nn

import flowplug as fp


@pytest.mark.parametrize("module", [nn.Dropout(), nn.BatchNorm1d(3), nn.GELU()])
def test_unknown_modules_are_refused_by_name(module):
    name = type(module).__name__
    with pytest.raises(fp.LipschitzError, match=rf"no Lipschitz bound is known for torch\..*\.{name}: "):
        fp.ResidualTransform(nn.Sequential(fp.LipschitzLinear(3, 3), module))


def test_different_norms_do_not_multiply():
    g = nn.Sequential(fp.LipschitzLinear(3, 3), fp.LipschitzLinear(3, 3, norm=fp.Gram()))
    with pytest.raises(fp.LipschitzError, match="different norms"):
        fp.lipschitz_bound(g)


def test_a_users_module_is_accepted_once_registered():
    class Mine(nn.Module):
        def forward(self, x):
            return 0.5 * x.sin()

    with pytest.raises(fp.LipschitzError, match="Mine: build g from flowplug's"):
        fp.ResidualTransform(Mine())

    @fp.lipschitz_bound.register
    def _(module: Mine) -> fp.LipschitzBound:
        return fp.LipschitzBound(0.5)

    assert float(fp.ResidualTransform(Mine()).lipschitz) == 0.5


def test_a_bound_may_be_registered_in_each_way_of_singledispatch():
    class One(nn.Module):
        pass

    class Other(nn.Module):
        pass

    class Virtual(abc.ABC):
        @abc.abstractmethod
        def method(self): ...

    @fp.lipschitz_bound.register(One)
    def _(module):
        return fp.LipschitzBound(0.25)

    fp.lipschitz_bound.register(Virtual, lambda module: fp.LipschitzBound(0.5))
    Virtual.register(Other)
    assert float(fp.lipschitz_bound(type("Below", (One,), {})())) == 0.25
    assert float(fp.lipschitz_bound(Other())) == 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda kind: kind(nn.Linear)(2, 2),
        lambda kind: kind(nn.Sequential)(nn.Tanh()),
        lambda kind: kind(nn.Tanh)(),
        lambda kind: kind(nn.Conv2d)(2, 2, 3),
        lambda kind: kind(fp.LipschitzLinear)(2, 2),
        lambda kind: kind(fp.LipschitzConv2d)(2, 2, 3),
        lambda kind: kind(fp.LipschitzMLP)(2),
        lambda kind: kind(fp.MaxMin)(),
        lambda kind: kind(fp.CLipSwish)(),
        lambda kind: kind(fp.Sine)(),
        lambda kind: kind(fp.SineHuber)(),
        lambda kind: nn.Sequential(fp.LipschitzLinear(2, 2), kind(fp.CLipSwish)(math.inf)),
    ],
)
def test_a_subclass_has_the_bound_of_its_base_unless_it_replaces_forward(make):
    def same(base):
        return type("Same", (base,), {})

    def doubled(base):
        return type("Doubled", (base,), {"forward": lambda self, x: 2 * base.forward(self, x)})

    assert float(fp.lipschitz_bound(make(same))) > 0
    with pytest.raises(fp.LipschitzError, match="Doubled replaces the forward of"):
        fp.lipschitz_bound(make(doubled))


def test_bounds_from_one_norm_to_another_multiply_in_order():
    layers = [
        fp.LipschitzLinear(3, 4, norm=fp.InducedNorm(1, 2)),
        fp.LipschitzLinear(4, 3, norm=fp.InducedNorm(2, 3)),
    ]
    bound = fp.lipschitz_bound(nn.Sequential(*layers))
    product = math.prod(float(fp.lipschitz_bound(layer)) for layer in layers)
    assert (float(bound), bound.domain, bound.codomain) == (pytest.approx(product), 1, 3)
    assert "from the 1-norm to the 3-norm" in str(bound)
    with pytest.raises(fp.LipschitzError, match="different norms"):
        fp.lipschitz_bound(nn.Sequential(*reversed(layers)))


@pytest.mark.parametrize(
    ("bound", "dual"),
    [
        (fp.LipschitzBound(0.9), fp.LipschitzBound(0.9)),
        (fp.LipschitzBound(0.9, 2.0), fp.LipschitzBound(0.9, 2.0)),
        (fp.LipschitzBound(0.9, 1.0), fp.LipschitzBound(0.9, math.inf)),
        (fp.LipschitzBound(0.9, 1.0, 2.0), fp.LipschitzBound(0.9, 2.0, math.inf)),
        (fp.LipschitzBound(0.9, 1.5, math.inf), fp.LipschitzBound(0.9, 1.0, 3.0)),
    ],
    ids=str,
)
def test_the_dual_bounds_transposed_jacobians(bound, dual):
    assert bound.dual() == dual
    assert bound.dual().dual() == bound


@pytest.mark.parametrize(("p", "q"), [(1, 2), (1, 3), (2, math.inf), (1.5, math.inf), (1, math.inf), (2, 2)])
def test_a_matrix_and_its_transpose_have_dual_norms(p, q, eps):
    weight = torch.randn(4, 5)
    bound = fp.InducedNorm(p, q).certify(weight)
    dual = bound.dual()
    start, end = dual.domain, dual.domain if dual.codomain is None else dual.codomain
    assert float(fp.InducedNorm(start, end).certify(weight.T)) == pytest.approx(float(bound), rel=1000 * eps)


def test_the_dual_keeps_no_graph():
    bound = fp.lipschitz_bound(fp.LipschitzLinear(3, 3))
    assert bound.value.requires_grad
    assert isinstance(bound.dual().value, float)


@pytest.mark.parametrize(
    ("parts", "elementwise"),
    [
        ((nn.Tanh(), nn.Sigmoid()), True),
        ((nn.Tanh(), nn.Sequential(fp.Sine(), nn.Identity())), True),
        ((), True),
        ((nn.Tanh(), fp.MaxMin()), False),
        ((nn.Tanh(), nn.Flatten()), False),
        ((nn.Tanh(), fp.LipschitzLinear(3, 3)), False),
    ],
)
def test_a_sequence_is_elementwise_if_all_of_it_is(parts, elementwise):
    assert fp.lipschitz_bound(nn.Sequential(*parts)).elementwise == elementwise


def test_elementwise_sequences_use_the_bound_as_their_parts_do():
    """Of `PathNorm`: an identity behind a tanh costs nothing, a sort does."""
    networks = [
        fp.LipschitzMLP(4, (32,), activation=activation)
        for activation in (nn.Tanh, lambda: nn.Sequential(nn.Tanh(), nn.Identity()), lambda: nn.Sequential(fp.MaxMin()))
    ]
    for g in networks[1:]:
        g.load_state_dict(networks[0].state_dict())
    tanh, same, sort = (g.bounded_weights()[-1] for g in networks)
    assert torch.equal(tanh, same)
    assert float(sort.abs().sum().detach()) < float(tanh.abs().sum().detach())
