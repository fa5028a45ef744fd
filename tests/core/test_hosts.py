"""What adapters share: log-dets of every shape, and errors that say whose transform was given."""

import importlib.util

import pytest
import torch
from nflows import transforms as nt
from torch import nn

import flowplug as fp
from flowplug import hosts


class Doubling(nn.Module):
    """A host's transform, y = 2 x, of features, with a log-det in a form of one's choice."""

    FORMS = {  # noqa: RUF012
        "number": lambda x, ladj: ladj * x.shape[1],
        "one for all": lambda x, ladj: torch.tensor(ladj * x.shape[1]),
        "one entry": lambda x, ladj: torch.tensor([ladj * x.shape[1]]),
        "each": lambda x, ladj: torch.full((len(x),), ladj * x.shape[1]),
        "element-wise": lambda x, ladj: torch.full_like(x, ladj),
    }

    def __init__(self, form):
        super().__init__()
        self.form = self.FORMS[form]

    def double(self, x):
        return x.mul_(2), self.form(x, torch.tensor(2.0).log().item())

    def halve(self, y):
        return y.div_(2), self.form(y, -torch.tensor(2.0).log().item())


class Bridge(hosts.HostTransform):
    def _to_latent(self, x, context):
        return self.host.double(x)

    def _to_data(self, y, context):
        return self.host.halve(y)


@pytest.mark.parametrize("form", Doubling.FORMS)
@pytest.mark.parametrize("batch", [(), (5,), (0,), (2, 3)], ids=str)
def test_log_dets_of_every_form(batch, form, eps):
    transform, x = Bridge(Doubling(form), event_dim=1, context_features=0), torch.randn(*batch, 3)
    before = x.clone()
    y, ladj = transform(x)
    assert torch.equal(x, before)
    wanted = torch.full(batch, 3 * torch.tensor(2.0).log().item())
    torch.testing.assert_close(y, 2 * x, atol=0, rtol=0)
    torch.testing.assert_close(ladj, wanted, atol=10 * eps, rtol=0)
    torch.testing.assert_close(transform.inverse(y), (x, -wanted), atol=10 * eps, rtol=0)
    ladj += 1  # every sample has an entry of its own


def test_a_host_that_changes_the_shape_is_refused():
    class Dropping(Bridge):
        def _to_latent(self, x, context):
            return x[:, :2], 0.0

    transform = Dropping(Doubling("number"), event_dim=1, context_features=0)
    with pytest.raises(fp.ShapeError, match=r"Doubling maps events of shape \(3,\) to \(2,\)"):
        transform(torch.randn(4, 3))


@pytest.mark.parametrize(("event_dim", "context_features", "error"), [(0, 0, fp.ShapeError), (1, -1, fp.ContextError)])
def test_bad_sizes(event_dim, context_features, error):
    with pytest.raises(error, match=f"got {min(event_dim, context_features)}"):
        Bridge(Doubling("number"), event_dim=event_dim, context_features=context_features)


class TestCheckHost:
    def message(self, transform, instead=None, function="from_mine"):
        with pytest.raises(TypeError) as caught:
            hosts.check_host(function, transform, nn.Linear, instead)
        assert str(caught.value).startswith(f"{function} takes a torch.nn.modules.linear.Linear; got ")
        return str(caught.value).partition("; got ")[2]

    def test_the_hosts_own_pass(self):
        hosts.check_host("from_mine", nn.Linear(2, 2), nn.Module)
        hosts.check_host("from_mine", nn.Linear(2, 2), (nn.Tanh, nn.Linear))

    def test_an_adapter_is_named_only_if_it_is_installed(self, monkeypatch):
        transform, name = nt.LULinear(2), "nflows.transforms.lu.LULinear"
        assert self.message(transform) == f"{name}, which belongs to nflows: use flowplug_nflows.from_nflows"
        asked = []
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: asked.append(name))
        assert self.message(transform).startswith(f"{name}, a module that is no transform")
        assert "flowplug_nflows" in asked

    def test_the_adapter_that_was_called_is_not_named(self):
        assert "no transform" in self.message(nt.LULinear(2), function="from_nflows")

    def test_a_copy_of_a_host_inside_another_library(self):
        inside = type("Coupling", (nn.Module,), {"__module__": "glasflow.nflows.transforms"})
        assert self.message(inside()).endswith("Coupling, which belongs to nflows: use flowplug_nflows.from_nflows")

    def test_the_first_advice_that_fits(self):
        instead = {nn.Tanh: "a tangent: pass its argument", nn.Module: "a module"}
        assert self.message(nn.Tanh(), instead) == "torch.nn.modules.activation.Tanh, a tangent: pass its argument"
        assert self.message(nn.Sigmoid(), instead).endswith("Sigmoid, a module")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (nn.Linear, "torch.nn.modules.linear.Linear itself: call it, and pass what it returns"),
            (hosts.parts_of, "flowplug.hosts.parts_of itself: call it, and pass what it returns"),
            ("linear", "'linear'"),
            (None, "None"),
        ],
    )
    def test_what_is_no_module(self, given, message):
        assert self.message(given) == message

    def test_transforms_of_flowplug(self):
        assert self.message(fp.ActNorm(2)) == "flowplug.ActNorm, a flowplug transform already: use it as it is"
