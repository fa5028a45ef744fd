"""What is printed is what runs."""

import math

import normflows as nf
import pytest
import torch
from nflows.transforms import LULinear
from torch import nn

import flowplug as fp
import flowplug_nflows
import flowplug_normflows
import flowplug_zuko
from flowplug.logdet import describe_default
from helpers import Scale

UNKNOWN = "None (chosen by the size of the events)"


def shown(module):
    """The lines of a module itself, by name."""
    return dict(line.split("=", 1) for line in module.extra_repr().split("\n"))


class TestLogDet:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: fp.LipschitzMLP(2),
            lambda: fp.LipschitzMLP(100, context_features=3),
            lambda: fp.LipschitzMLP((1, 28, 28), (16,)),
            lambda: fp.LipschitzMLP(784, (64,), norm=fp.Gram()),
            lambda: fp.LipschitzMLP(200, (16,), activation=fp.MaxMin, norm=fp.Gram()),
            lambda: fp.LipschitzDenseNet(9, (4,)),
            lambda: fp.LipschitzMLP((3, 8, 8)),
        ],
    )
    @pytest.mark.parametrize("training", [True, False])
    def test_the_chosen_one_is_the_one_that_runs(self, make, training):
        transform = fp.ResidualTransform(make()).train(training)
        context = torch.zeros(4, transform.context_features) if transform.context_features else None
        x = torch.randn(4, *transform.event_shape)
        runs = transform._estimator(fp.Branch.of(transform.g, context), x)
        got = shown(transform)["logdet" if training else "eval_logdet"]
        assert got.startswith(str(runs))
        assert got.endswith("(chosen)")

    def test_on_a_gpu_it_changes_with_the_number_of_rows(self):
        class Sized(fp.Branch):
            def core_size(self, event):
                return math.prod(event)

        branch = Sized(nn.Identity(), None)
        few = describe_default(branch, (64,), cuda=True, training=True)
        assert few == f"{fp.ExactLogDet()} to 512 rows, {fp.Krylov()} beyond (chosen)"
        assert describe_default(branch, (65,), cuda=True, training=True) == f"{fp.Krylov()} (chosen)"
        assert describe_default(branch, (4,), cuda=True, training=True) == f"{fp.ExactLogDet()} (chosen)"

    @pytest.mark.parametrize(
        "make",
        [lambda: fp.LipschitzCNN(3), lambda: nn.Sequential(fp.LipschitzLinear(2, 2, bound=0.9)), lambda: Scale(0.5)],
    )
    def test_events_of_unknown_size(self, make):
        transform = fp.ResidualTransform(make())
        assert (shown(transform)["logdet"], shown(transform)["eval_logdet"]) == (UNKNOWN, UNKNOWN)

    def test_a_network_that_makes_its_own_branch(self):
        class Own(fp.BranchModule):
            event_shape = (2,)

            def __init__(self):
                super().__init__()
                self.inner = Scale(0.5)

            def forward(self, x):
                return self.inner(x)

            def branch(self, context):
                raise AssertionError("a pass is not made to print")

        fp.lipschitz_bound.register(Own, lambda module: fp.lipschitz_bound(module.inner))
        assert shown(fp.ResidualTransform(Own()))["logdet"] == UNKNOWN

    def test_a_given_one(self):
        lines = shown(fp.ResidualTransform(fp.LipschitzMLP(2), logdet=fp.Krylov(), eval_logdet=fp.ExactLogDet()))
        assert lines == {"logdet": f"{fp.Krylov()}", "eval_logdet": "ExactLogDet()", "solver": f"{fp.Anderson()}"}

    def test_nothing_is_computed(self, monkeypatch):
        transform = fp.ResidualTransform(fp.LipschitzMLP(100, context_features=3))
        monkeypatch.setattr(fp.LipschitzMLP, "bounded_weights", lambda self: pytest.fail("weights were bounded"))
        assert "Krylov" in repr(transform)

    def test_on_the_meta_device(self):
        with torch.device("meta"):
            text = repr(fp.ResidualStack(3, transforms=1))
        assert "logdet=ExactLogDet() (chosen)" in text


class TestNetworks:
    def test_bound_and_norm(self):
        assert fp.LipschitzMLP(2).extra_repr() == "bound=0.97, norm=PathNorm()"
        g = fp.LipschitzMLP(2, (4, 4), bound=0.98, norm=fp.InfNorm())
        assert g.extra_repr() == "bound=0.98, norm=InfNorm()"
        assert repr(g.layers[0]).endswith("bias=True, bound=0.993288, norm=InfNorm())")

    @pytest.mark.parametrize(
        "norm",
        [fp.PowerIteration(), fp.LearnedOrder(), [fp.InducedNorm(2.0, 1.0), fp.InducedNorm(1.0, 2.0)]],
        ids=lambda norm: type(norm).__name__,
    )
    def test_norms_of_layers_are_shown_there(self, norm):
        assert fp.LipschitzMLP(2, (4,), norm=norm).extra_repr() == "bound=0.97"


def test_activations_say_their_slopes():
    assert repr(fp.DenseTransform(2).activation) == "SmoothLeakyReLU(0.3, event_dim=1)"
    assert repr(fp.TanhLinear(2.0, event_dim=3)) == "TanhLinear(2.0, linear=0.1, event_dim=3)"


class TestHosts:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: flowplug_nflows.ResidualTransform(2, 8),
            lambda: flowplug_nflows.ResidualFlow(2, 8, 1, 1),
            lambda: flowplug_nflows.ImageFlow(fp.ImageStack((1, 4, 4), transforms=1, hidden_features=(8,), size=2)),
            lambda: flowplug_normflows.Residual(2, hidden_features=(8,)),
            lambda: flowplug_normflows.ResidualFlow(2, 1),
            lambda: flowplug_zuko.ResidualTransform(2),
            lambda: flowplug_zuko.ResidualFlow(2, transforms=1),
            lambda: flowplug_zuko.ResidualFlow(2, transforms=1)(),
        ],
    )
    def test_a_residual_transform_says_the_same_inside_any_flow(self, make):
        text = repr(make())
        for line in ("logdet=ExactLogDet() (chosen)", "solver=Anderson(", "bound=0.97, norm=PathNorm()"):
            assert line in text
        assert "=None\n" not in text

    def test_a_direction_that_is_not_the_default(self):
        assert "reverse" not in repr(flowplug_normflows.Residual(2))
        assert repr(flowplug_normflows.Residual(2, reverse=False)).startswith("Residual(\n  reverse=False\n")

    def test_bridges_say_what_they_found(self):
        assert repr(flowplug_nflows.from_nflows(LULinear(2))).startswith(
            "NflowsBridge(\n  event_dim=1, context_features=0\n  (host): LULinear()"
        )
        bridge = flowplug_normflows.from_normflows(nf.flows.Permute(2))
        assert bridge.extra_repr() == "event_dim=1, context_features=0"
