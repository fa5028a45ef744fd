"""Intermediate features by name: those of a pass through the parts by hand, with their gradients."""

import pytest
import torch

import flowplug as fp
from cases import multiscale, residual


def deep():
    inner = fp.ComposedTransform(fp.ActNorm(3), residual(context_features=2))
    return fp.ComposedTransform(inner, residual(), fp.InverseTransform(fp.ActNorm(3))).eval()


def test_are_the_outputs_of_the_parts():
    flow, x, context = deep(), torch.randn(4, 7, 3), torch.randn(7, 2)
    names = ["transforms.1", "transforms.0.transforms.0", "transforms.0", "transforms.0.transforms.1", "transforms.2"]
    y, ladj, features = flow.forward_with_features(x, context, names=names)
    torch.testing.assert_close((y, ladj), flow(x, context), rtol=0, atol=0)
    assert set(features) == set(names)
    torch.testing.assert_close(features["transforms.2"], y, rtol=0, atol=0)
    between, wanted = x, {}
    for name in ["transforms.0.transforms.0", "transforms.0.transforms.1", "transforms.1"]:
        between = wanted[name] = flow.get_submodule(name)(between, context)[0]
    wanted["transforms.0"] = wanted["transforms.0.transforms.1"]
    for name, feature in wanted.items():
        torch.testing.assert_close(features[name], feature, rtol=0, atol=0)


def test_of_scales():
    flow, x, context = multiscale().eval(), torch.randn(5, 1, 4, 2), torch.randn(5, 2)
    y, ladj, features = flow.forward_with_features(x, context, names=["scales.0", "scales.1.transforms.1"])
    torch.testing.assert_close((y, ladj), flow(x, context), rtol=0, atol=0)
    assert {name: feature.shape[1:] for name, feature in features.items()} == {
        "scales.0": (4, 2, 1),
        "scales.1.transforms.1": (2, 2, 1),
    }
    assert torch.equal(features["scales.0"][:, :2].flatten(1), y[:, :4])


def test_have_gradients():
    flow, x = fp.ComposedTransform(residual(), residual()), torch.randn(4, 3, requires_grad=True)
    _, ladj, features = flow.forward_with_features(x, names=["transforms.0"])
    (ladj.sum() + features["transforms.0"].square().sum()).backward()
    assert x.grad.any()
    assert all(p.grad is not None for p in flow.transforms[0].parameters())


def test_leave_no_state():
    flow = deep()
    before = {key: value for key, value in vars(flow).items() if not key.startswith("_")}
    flow.forward_with_features(torch.randn(4, 3), torch.randn(4, 2), names=["transforms.1"])
    assert {key: value for key, value in vars(flow).items() if not key.startswith("_")} == before
    assert not flow._forward_hooks


def test_of_no_names():
    assert deep().forward_with_features(torch.randn(4, 3), torch.randn(4, 2), names=[])[2] == {}


@pytest.mark.parametrize(
    "names", [["transforms.3"], ["0"], ["transforms.1.g"], "transforms.0", ["transforms.2.transform"]]
)
def test_unknown_names(names):
    message = (
        r"names of its parts, transforms\.0, transforms\.0\.transforms\.0, transforms\.0\.transforms\.1, "
        r"transforms\.1, transforms\.2; got "
    )
    with pytest.raises(ValueError, match=message):
        deep().forward_with_features(torch.randn(4, 3), torch.randn(4, 2), names=names)


def test_inputs_are_checked_first():
    with pytest.raises(fp.ShapeError, match=r"event \(3,\); got shape \(4, 2\)"):
        deep().forward_with_features(torch.randn(4, 2), torch.randn(4, 2), names=[])


@pytest.mark.filterwarnings("ignore")  # those of the compiler about what it traces
def test_compiled_it_is_one_graph():
    torch.compiler.reset()
    flow, x, context = deep(), torch.randn(4, 3), torch.randn(4, 2)
    flow = fp.ComposedTransform(flow.transforms[0], residual()).eval()

    def call(x, context):
        return flow.forward_with_features(x, context, names=["transforms.0.transforms.1"])

    wanted, got = call(x, context), torch.compile(call, backend="aot_eager", fullgraph=True)(x, context)
    torch.testing.assert_close(got, wanted)
