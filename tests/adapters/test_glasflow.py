"""glasflow, which has a copy of nflows inside, as the host of flowplug_nflows."""

import subprocess
import sys
import types

import pytest
import torch
from nflows import distributions, flows, transforms

import flowplug as fp
import flowplug_nflows
from flowplug_nflows import _host
from host_checks import train

# nflows under the name of the copy, and under no other.
ALIASED = """
import sys, types
import nflows.distributions, nflows.flows, nflows.transforms
for name in [name for name in sys.modules if name.partition(".")[0] == "nflows"]:
    sys.modules[f"glasflow.{name}"] = sys.modules.pop(name)
sys.modules |= {"glasflow": types.ModuleType("glasflow"), "nflows": None}
import torch, flowplug as fp, flowplug_nflows
from glasflow.nflows import distributions, flows, transforms
"""
USED = """
own = flowplug_nflows.ResidualTransform(2, 8)
assert isinstance(own, transforms.Transform)
flow = flows.Flow(transforms.CompositeTransform([own, transforms.LULinear(2)]), distributions.StandardNormal([2]))
assert flow.log_prob(torch.randn(5, 2)).shape == (5,) and flow.sample(3).shape == (3, 2)
assert isinstance(flowplug_nflows.ResidualFlow(2, 8, 1, 1), flows.Flow)
flowplug_nflows.start(flow, torch.randn(100, 2))
images = [transforms.SqueezeTransform(), flowplug_nflows.ResidualTransform((4, 2, 2), 8)]
assert flowplug_nflows.from_nflows(transforms.CompositeTransform(images)).event_shape == (1, 4, 4)
print("done")
"""


def test_it_is_the_host_where_nflows_is_missing():
    root = fp.__path__[0].rsplit("/", 1)[0]
    env = {"PYTHONPATH": f"{root}:{root}/adapters", "PATH": ""}
    code = ALIASED + USED
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


class TestBesideNflows:
    """With both installed, nflows is the host, and transforms of the copy are taken as well."""

    @pytest.fixture
    def copy(self, monkeypatch):
        """A class of a copy that is loaded."""
        copied = type("Transform", (torch.nn.Module,), {"__module__": "glasflow.nflows.transforms.base"})
        module = types.ModuleType("glasflow.nflows.transforms.base")
        module.Transform = copied
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return copied

    def test_both_classes_are_looked_for(self, copy):
        assert _host.of_either(transforms.Transform) == (transforms.Transform, copy)

    def test_the_host_alone_without_a_copy(self):
        if "glasflow" not in sys.modules:
            assert _host.of_either(transforms.Transform) == (transforms.Transform,)
            assert _host.flow_classes() == (distributions.Distribution,)


class TestInstalled:
    """glasflow itself, where it is installed."""

    @pytest.fixture
    def glasflow(self):
        return pytest.importorskip("glasflow")

    def test_our_layers_train_and_sample_in_its_flows(self, glasflow):
        flow = glasflow.RealNVP(2, n_transforms=2, n_neurons=8)
        flow._transform._transforms.insert(1, flowplug_nflows.ResidualTransform(2, 8))
        flow._transform._transforms.append(flowplug_nflows.NflowsTransform(fp.ActNorm(2)))
        x = 3 + torch.randn(64, 2)
        flowplug_nflows.start(flow, x)
        assert abs(float(flow.forward(x)[0].detach().mean())) < 0.1
        train(flow, lambda: -flow.log_prob(x).mean())
        assert flow.eval().sample(5).shape == (5, 2)

    def test_with_a_context(self, glasflow):
        flow = glasflow.CouplingNSF(2, n_transforms=2, n_conditional_inputs=3, n_neurons=8)
        flow._transform._transforms.insert(1, flowplug_nflows.ResidualTransform(2, 8, context_features=3))
        x, context = torch.randn(64, 2), torch.randn(64, 3)
        train(flow, lambda: -flow.log_prob(x, conditional=context).mean())
        assert flow.eval().sample(64, conditional=context).shape == (64, 2)

    def test_its_transforms_are_bridged(self, glasflow):
        flow = glasflow.CouplingNSF(2, n_transforms=2, n_conditional_inputs=3, n_neurons=8)
        bridge, x, context = flowplug_nflows.from_nflows(flow._transform), torch.randn(5, 2), torch.randn(5, 3)
        assert bridge.context_features == 3
        y, ladj = bridge(x, context)
        wanted, wanted_ladj = flow.forward(x, conditional=context)
        assert torch.equal(y, wanted)
        assert torch.equal(ladj, wanted_ladj)
        torch.testing.assert_close(bridge.inverse(y, context)[0], x, atol=1e-4, rtol=0)

    def test_its_shapes_are_known(self, glasflow):
        from glasflow.nflows import transforms as copied

        composite = copied.CompositeTransform(
            [copied.SqueezeTransform(), flowplug_nflows.ResidualTransform((4, 2, 2), 8)]
        )
        bridge = flowplug_nflows.from_nflows(copied.InverseTransform(composite))
        assert (bridge.event_shape, bridge.latent_shape) == ((4, 2, 2), (1, 4, 4))

    def test_its_missing_inverse(self, glasflow):
        from glasflow.nflows.transforms import BatchNorm

        with pytest.raises(fp.InverseNotAvailable, match="BatchNorm of nflows has no inverse in train mode"):
            flowplug_nflows.from_nflows(BatchNorm(2)).inverse(torch.randn(8, 2))

    def test_its_flows_are_refused(self, glasflow):
        for flow in (
            glasflow.RealNVP(2, n_transforms=1),
            flows.Flow(transforms.LULinear(2), distributions.StandardNormal([2])),
        ):
            with pytest.raises(TypeError, match=r"a flow: pass the transform it was made from, flow\._transform"):
                flowplug_nflows.from_nflows(flow)
