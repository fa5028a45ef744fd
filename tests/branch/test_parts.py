"""What bypasses the forward of a part of g: refused by name wherever g is evaluated or bounded."""

import types

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import flowplug as fp
from helpers import sequential


class Mine(nn.Module):
    """A user's module, whose rule looks at the weight of a part."""

    def __init__(self):
        super().__init__()
        self.inner = fp.LipschitzLinear(3, 3, bound=0.5)

    def forward(self, x):
        return self.inner(x).tanh()


@fp.lipschitz_bound.register
def _(module: Mine):
    return fp.LipschitzBound(module.inner.bounded_weight().abs().sum(1).amax(), limit=0.5)


def first_layer(g):
    return next(part for part in g.modules() if isinstance(part, nn.Linear))


def tripled(module, *arguments):
    return 3 * arguments[-1] if isinstance(arguments[-1], torch.Tensor) else None


WAYS = {
    "weight_norm": (nn.utils.weight_norm, "a forward pre-hook, WeightNorm, .*parametrizations.weight_norm"),
    "spectral_norm": (nn.utils.spectral_norm, "a forward pre-hook, SpectralNorm, .*parametrizations.spectral_norm"),
    "prune": (lambda m: prune.l1_unstructured(m, "weight", 0.5), "a forward pre-hook, L1Unstructured, .*prune.remove"),
    "hook": (lambda m: m.register_forward_hook(tripled), "a forward hook, tripled, .*: remove it, or"),
    "pre-hook": (lambda m: m.register_forward_pre_hook(lambda m, i: None), r"a forward pre-hook, .*<lambda>, "),
    "backward hook": (lambda m: m.register_full_backward_hook(lambda m, i, o: None), r"a backward hook, .*<lambda>"),
    "backward pre-hook": (lambda m: m.register_full_backward_pre_hook(lambda m, o: None), "a backward pre-hook"),
    "forward": (lambda m: setattr(m, "forward", lambda x: 5 * x), "a forward of its own, not that of its class"),
    "method": (lambda m: setattr(m, "forward", types.MethodType(lambda m, x: x, m)), "a forward of its own"),
}
BRANCHES = {"network": lambda: fp.LipschitzMLP(3, (8,)), "sequential": sequential, "user's": Mine}


@pytest.mark.parametrize("make", BRANCHES.values(), ids=BRANCHES)
@pytest.mark.parametrize(("change", "message"), WAYS.values(), ids=WAYS)
# torch's own: the old form is what is to be refused.
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_refused_in_passes_and_certificates(make, change, message):
    x = torch.randn(5, 3)
    transform = fp.ResidualTransform(make())
    change(first_layer(transform.g))
    calls = [transform, transform.inverse, lambda x: fp.lipschitz_bound(transform.g), lambda x: transform.lipschitz]
    for training in (True, False):
        transform.train(training)
        for call in calls:
            with pytest.raises(fp.LipschitzError, match=rf"part (layers\.)?(0|inner) = \w*Linear, has {message}"):
                call(x)
    with pytest.raises(fp.LipschitzError, match=message):
        fp.ResidualTransform(transform.g)


@pytest.mark.parametrize(("change", "message"), WAYS.values(), ids=WAYS)
# torch's own: the old form is what is to be refused.
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_network_on_its_own_refuses_too(change, message):
    """It never calls its layers, so that the parameters of an old `weight_norm` were dead."""
    g = fp.LipschitzMLP(3, (8,))
    change(first_layer(g))
    with pytest.raises(fp.LipschitzError, match=message):
        g(torch.randn(5, 3))


def test_an_activation_with_a_hook_is_refused():
    def hooked():
        module = nn.Tanh()
        module.register_forward_hook(tripled)
        return module

    with pytest.raises(fp.LipschitzError, match="g = Tanh has a forward hook, tripled"):
        fp.LipschitzMLP(3, (8,), activation=hooked)


@pytest.mark.parametrize("make", BRANCHES.values(), ids=BRANCHES)
def test_a_hook_on_g_itself(make):
    """Refused inside the transform, where a network's forward is not called, and called where it is."""
    seen, transform = [], fp.ResidualTransform(make())
    transform.g.register_forward_hook(lambda *arguments: seen.append(1))
    transform.g(torch.randn(5, 3))
    assert seen
    with pytest.raises(fp.LipschitzError, match=r"g = \w+ has a forward hook"):
        transform(torch.randn(5, 3))


def test_hooks_around_g_work():
    seen, transform = [], fp.ResidualTransform(fp.LipschitzMLP(3))
    flow = fp.ComposedTransform(transform)
    for module in (transform, flow):
        module.register_forward_hook(lambda *arguments: seen.append(1))
    flow.eval()(torch.randn(5, 3))
    assert len(seen) == 2


@pytest.mark.parametrize("make", BRANCHES.values(), ids=BRANCHES)
@pytest.mark.parametrize("parametrize", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_parametrizations_are_honoured(make, parametrize):
    g = make()
    layer = first_layer(g)
    parametrize(layer)
    transform, x = fp.ResidualTransform(g), torch.randn(5, 3)
    before = transform.eval()(x)[0]
    with torch.no_grad():
        for parameter in layer.parametrizations.weight.parameters():
            parameter.add_(torch.rand_like(parameter))
    assert not torch.equal(transform(x)[0], before)
    assert float(transform.lipschitz) < 1
    transform.train()(x)[1].sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parametrizations.parameters())


def test_pruning_made_permanent_works():
    g = fp.LipschitzMLP(3, (8,))
    prune.l1_unstructured(g.layers[0], "weight", 0.5)
    prune.remove(g.layers[0], "weight")
    fp.ResidualTransform(g).eval()(torch.randn(5, 3))
    assert (g.layers[0].weight == 0).sum() == 12
