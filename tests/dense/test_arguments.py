"""Wrong arguments of dense transforms: refused at once, with what to do."""

import pytest
import torch

import flowplug as fp

MAKES = [fp.DenseTransform, fp.DenseConv1x1, fp.CircularConv2d]


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("features", ["3", 2.5, True, (3,), None])
def test_features(make, features):
    with pytest.raises(TypeError, match=rf"{make.__name__}\((features|channels)=\.\.\.\) must be an integer; got"):
        make(features)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("features", [-1, 0])
def test_no_features(make, features):
    with pytest.raises(
        fp.ShapeError, match=rf"{make.__name__} needs positive sizes; got (features|channels)={features}"
    ):
        make(features)


@pytest.mark.parametrize("size", ["3", 2.5, (3, 3), None])
def test_kernel_sizes(size):
    with pytest.raises(TypeError, match=r"CircularConv2d\(kernel_size=\.\.\.\) must be an integer; got"):
        fp.CircularConv2d(3, size)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("activation", ["relu", torch.nn.Tanh(), torch.nn.Tanh, fp.TanhLinear, torch.tanh])
def test_activations(make, activation):
    with pytest.raises(TypeError, match=rf"{make.__name__}\(activation=\.\.\.\) must be a flowplug transform, such as"):
        make(3, activation=activation)


@pytest.mark.parametrize("make", MAKES)
def test_activations_of_other_events(make):
    for event_dim in (0, 2, 3):
        with pytest.raises(fp.ShapeError, match=rf"it needs event_dim=1; got event_dim={event_dim} of TanhLinear"):
            make(3, activation=fp.TanhLinear(event_dim=event_dim))
    with pytest.raises(fp.ShapeError, match=r"must take 3 features; got one of \(4,\)"):
        make(3, activation=fp.ActNorm(4))
    conditional = fp.ResidualTransform(fp.LipschitzMLP(3, context_features=2))
    with pytest.raises(fp.ContextError, match=r"gets no context; got ResidualTransform with context_features=2"):
        make(3, activation=conditional)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("gradient", [fp.Relative, "relative", None, fp.ExactValue()])
def test_gradients(make, gradient):
    with pytest.raises(
        TypeError, match=rf"{make.__name__}\(gradient=\.\.\.\) must be the gradient of .*Relative\(\); got"
    ):
        make(3, gradient=gradient)


@pytest.mark.parametrize("value", [fp.ExactValue, fp.Deferred, 100, fp.Relative()])
def test_values(value):
    with pytest.raises(TypeError, match=r"DenseTransform\(value=\.\.\.\) must be .*such as ExactValue\(\); got"):
        fp.DenseTransform(3, value=value)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("init", ["orthogonal", 3, torch.eye(3)])
def test_starts(make, init):
    with pytest.raises(
        TypeError, match=rf"{make.__name__}\(init=\.\.\.\) must be a function that fills a matrix in place, or N"
    ):
        make(3, init=init)


@pytest.mark.parametrize("every", ["3", 2.5, True, None])
def test_intervals(every):
    with pytest.raises(TypeError, match=r"Deferred\(every=\.\.\.\) must be an integer; got"):
        fp.Deferred(every)


def test_scales():
    with pytest.raises(TypeError, match=r"ScaledIdentity\(scale=\.\.\.\) must be a number; got '1'"):
        fp.ScaledIdentity("1")
