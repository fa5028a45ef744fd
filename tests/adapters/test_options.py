"""One set of options in every host, and the recommended flow of each: a `ResidualStack` on a standard normal."""

import pytest
import torch
from torch import nn

import flowplug as fp
import flowplug_nflows
import flowplug_normflows
import flowplug_zuko

# Two hidden layers of 16 for events of width 3 and contexts of width 2.
TRANSFORMS = {
    "nflows": lambda **k: flowplug_nflows.ResidualTransform(3, 16, 2, 2, **k),
    "normflows": lambda **k: flowplug_normflows.Residual(3, hidden_features=(16, 16), context_features=2, **k),
    "zuko": lambda **k: flowplug_zuko.ResidualTransform(3, 2, (16, 16), **k),
}
FLOWS = {
    "nflows": lambda n=2, **k: flowplug_nflows.ResidualFlow(3, 16, n, 2, 2, **k),
    "normflows": lambda n=2, **k: flowplug_normflows.ResidualFlow(3, n, (16, 16), context_features=2, **k),
    "zuko": lambda n=2, **k: flowplug_zuko.ResidualFlow(3, 2, n, hidden_features=(16, 16), **k),
}
MAKERS = {
    **{f"{host} transform": make for host, make in TRANSFORMS.items()},
    **{f"{host} flow": make for host, make in FLOWS.items()},
}
LOG_PROB = {
    "nflows": lambda flow, x, context: flow.log_prob(x, context),
    "normflows": lambda flow, x, context: flow.log_prob(x, context),
    "zuko": lambda flow, x, context: flow(context).log_prob(x),
}
# The name of the i-th of n transforms in the state of a flow.
STATE = {
    "nflows": lambda i, n: f"_transform._transforms.{i}.core.",
    "normflows": lambda i, n: f"flows.{n - 1 - i}.core.",
    "zuko": lambda i, n: f"transform.transforms.{i}.core.",
}


def residuals(made):
    return [part for part in made.modules() if isinstance(part, fp.ResidualTransform)]


def stack():
    return fp.ResidualStack(3, 2, (16, 16), context_features=2)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
class TestOptions:
    def test_of_the_network(self, make, eps):
        made = residuals(make(bound=0.5, norm=fp.Gram(), activation=fp.LipSwish))
        assert made
        for part in made:
            assert [len(layer.weight) for layer in part.g.layers] == [16, 16, 3]
            assert [type(activation) for activation in part.g.activations] == [fp.LipSwish] * 2
            assert [layer.norm for layer in part.g.layers] == [fp.Gram()] * 3
            assert (part.g.bound, part.g.context_features) == (0.5, 2)
            assert float(part.lipschitz) <= 0.5 * (1 + 8 * eps)

    def test_of_the_transform(self, make):
        chosen = {"logdet": fp.ExactLogDet(), "eval_logdet": fp.Krylov(), "solver": fp.FixedPoint(max_steps=50)}
        for part in residuals(make(**chosen)):
            assert {name: getattr(part, name) for name in chosen} == chosen

    def test_have_the_defaults_of_the_core(self, make):
        wanted = residuals(stack())[0]
        for part in residuals(make()):
            assert (part.logdet, part.eval_logdet, part.solver) == (None, None, wanted.solver)
            assert repr(part.g) == repr(wanted.g)

    def test_may_be_strategies_of_a_users_own(self, make):
        class Doubled:
            def __call__(self, branch, x, noise):
                gx, ladj = fp.ExactLogDet()(branch, x, noise)
                return gx, 2 * ladj

        own = Doubled()
        assert all(part.logdet is own for part in residuals(make(logdet=own)))

    def test_are_checked(self, make):
        with pytest.raises(fp.LipschitzError, match=r"LipschitzMLP\(bound=...\) must be in \(0, 1\)"):
            make(bound=1.0)
        with pytest.raises(fp.LipschitzError, match="GELU"):
            make(activation=nn.GELU)

    def test_are_no_others(self, make):
        with pytest.raises(TypeError, match="misspelt"):
            make(misspelt=1)


@pytest.mark.parametrize("host", FLOWS)
class TestResidualFlow:
    def test_is_the_stack_on_a_standard_normal(self, host):
        x, context = torch.randn(16, 3), torch.randn(16, 2)
        torch.manual_seed(1)
        flow = FLOWS[host]()
        torch.manual_seed(1)
        y, ladj = stack()(x, context)
        base = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
        torch.testing.assert_close(LOG_PROB[host](flow, x, context), base.log_prob(y).sum(1) + ladj)

    def test_has_the_state_of_the_stack(self, host):
        flow, parts = FLOWS[host](), stack()
        wanted = {
            STATE[host](int(i), len(parts.transforms)) + rest
            for _, i, rest in (name.split(".", 2) for name in parts.state_dict())
        }
        assert {name for name in flow.state_dict() if ".core." in name} == wanted

    def test_needs_a_transform(self, host):
        with pytest.raises(ValueError, match="must be at least 1; got 0"):
            FLOWS[host](0)
