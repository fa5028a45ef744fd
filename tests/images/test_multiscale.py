"""Factoring out half of the channels: the numbers of nflows' composite, and what cannot be halved."""

import pytest
import torch
from nflows import transforms as nt

import flowplug as fp
from cases import residual
from flowplug_nflows import NflowsTransform, from_nflows


def scale(channels, factor=2):
    width = channels * factor**2
    parts = [fp.Squeeze(factor), fp.ActNorm(width, event_dim=3), fp.ResidualTransform(fp.LipschitzCNN(width, (4,)))]
    return fp.ComposedTransform(*parts)


def started(flow, event):
    flow.start(torch.randn(100, *event))
    return flow.eval()


@pytest.mark.parametrize("event", [(1, 8, 4), (3, 4, 4)])
def test_has_the_numbers_of_nflows(event):
    channels = event[0]
    scales = [scale(channels), scale(2 * channels, 1), scale(channels)]
    flow = started(fp.MultiscaleTransform(*scales, event_shape=event), event)
    host, left = nt.MultiscaleCompositeTransform(3), event
    for part in scales:
        left = host.add_transform(NflowsTransform(part), part.forward_shape(left))
    x = torch.randn(5, *event)
    y, ladj = flow(x)
    torch.testing.assert_close((y, ladj), host(x))
    torch.testing.assert_close(flow.inverse(y), host.inverse(y))
    torch.testing.assert_close(flow.inverse(y)[0], x)
    bridged = from_nflows(host)
    assert (bridged.latent_dim, bridged.inverse_shape((None,))) == (1, event)
    torch.testing.assert_close(bridged(x), (y, ladj))


def test_an_odd_number_of_channels_is_halved_like_in_nflows():
    flow = fp.MultiscaleTransform(fp.TanhLinear(event_dim=3), fp.SmoothLeakyReLU(event_dim=3), event_shape=(3, 1, 1))
    x = torch.randn(5, 3, 1, 1)
    y = flow(x)[0]
    first = fp.TanhLinear()(x.flatten(1))[0]
    assert torch.equal(y[:, :2], first[:, :2])
    assert torch.equal(y[:, 2:], fp.SmoothLeakyReLU()(first[:, 2:])[0])


def test_vectors_are_halved_too():
    flow = fp.MultiscaleTransform(residual(event=5), residual(event=2), event_shape=(5,))
    x = torch.randn(4, 7, 5)
    y, ladj = flow(x)
    assert (y.shape, ladj.shape) == ((4, 7, 5), (4, 7))
    torch.testing.assert_close(flow.inverse(y)[0], x)


def test_one_scale_is_not_halved():
    flow = fp.MultiscaleTransform(fp.ActNorm(1, event_dim=3).eval(), event_shape=(1, 2, 2))
    x = torch.randn(5, 1, 2, 2)
    assert torch.equal(flow.eval()(x)[0], x.flatten(1))


def test_shapes():
    flow = fp.MultiscaleTransform(scale(1), scale(2), event_shape=(1, 8, 4))
    assert (flow.event_dim, flow.event_shape, flow.latent_dim, flow.latent_shape) == (3, (1, 8, 4), 1, (32,))
    known = fp.ComposedTransform(fp.MarginalGaussianization((1, 8, 4)), scale(1))
    assert fp.MultiscaleTransform(known, scale(2)).event_shape == (1, 8, 4)
    with pytest.raises(fp.ShapeError, match=r"event \(1, 8, 4\); got shape \(5, 1, 4, 4\)"):
        flow(torch.randn(5, 1, 4, 4))
    with pytest.raises(fp.ShapeError, match=r"MultiscaleTransform.inverse expects .* event \(32,\); got"):
        flow.inverse(torch.randn(5, 31))


class Shy(fp.TanhLinear):
    def _forward_shape(self, event):
        return (None,) * len(event)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fp.MultiscaleTransform(), fp.ShapeError, "one or more transforms"),
        (lambda: fp.MultiscaleTransform([scale(1), scale(2)]), TypeError, r"MultiscaleTransform\(\*transforms\)"),
        (lambda: fp.MultiscaleTransform(torch.nn.Tanh()), TypeError, "must be a Transform.*; got the module Tanh"),
        (
            lambda: fp.MultiscaleTransform(scale(1), scale(2)),
            fp.ShapeError,
            r"pass event_shape=.*; of \(1, None, None\)",
        ),
        (lambda: fp.MultiscaleTransform(fp.TanhLinear()), fp.ShapeError, "pass event_shape=.*; of None"),
        (
            lambda: fp.MultiscaleTransform(scale(1), event_shape="a"),
            TypeError,
            r"\(event_shape=\.\.\.\) must be",
        ),
        (
            lambda: fp.MultiscaleTransform(scale(1), scale(4), event_shape=(1, 8, 4)),
            fp.ShapeError,
            r"scale 2, ComposedTransform takes events \(4, None, None\); got \(2, 4, 2\)",
        ),
        (
            lambda: fp.MultiscaleTransform(scale(1), scale(2), event_shape=(1, 4, 2)),
            fp.ShapeError,
            r"scale 2, Squeeze needs images .* 2 divides; got \(2, 2, 1\)",
        ),
        (
            lambda: fp.MultiscaleTransform(*[fp.TanhLinear(event_dim=3)] * 2, event_shape=(1, 4, 4)),
            fp.ShapeError,
            r"scale 1 returns one channel, \(1, 4, 4\), which has no half",
        ),
        (
            lambda: fp.MultiscaleTransform(Shy(event_dim=3), event_shape=(1, 4, 4)),
            fp.ShapeError,
            r"scale 1, Shy, does not say what sizes it returns for \(1, 4, 4\)",
        ),
        (
            lambda: fp.MultiscaleTransform(
                residual(event=4, context_features=1), residual(event=2, context_features=3), event_shape=(4,)
            ),
            fp.ContextError,
            r"different widths \[1, 3\]",
        ),
    ],
)
def test_what_cannot_be_made(make, error, message):
    with pytest.raises(error, match=message):
        make()
