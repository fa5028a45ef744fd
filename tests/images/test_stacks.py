"""Whole flows of images: what they are made of, what a start makes of data, and samples."""

import pytest
import torch

import flowplug as fp
import flowplug_nflows
import flowplug_normflows
import flowplug_zuko

HOSTS = ["nflows", "normflows", "zuko"]


def kinds(stack):
    return [type(part).__name__ for part in stack.transforms]


def digits(count, *shape):
    """Images of few greys in place, dequantised."""
    grey = torch.randint(0, 4, (count, *shape)) * (torch.rand(shape) < 0.5) * (torch.rand(count, *shape) < 0.7)
    return fp.Dequantize(16)(grey)


def test_small_images_start_from_pixels_and_others_from_patches():
    stack = fp.ImageStack((1, 28, 28), 2)
    around = ["Reshape", "Whitening", "Reshape", "ActNorm"]
    assert kinds(stack) == ["HistogramGaussianization", "PatchTransform", "PatchTransform", *around]
    assert [(part.size, part.shift) for part in stack.transforms[1:3]] == [(7, 0), (7, 3)]
    stack = fp.ImageStack((3, 32, 32), 2)
    assert kinds(stack) == ["PatchTransform"] * 6 + ["ActNorm"]
    sizes = [(part.size, part.shift) for part in stack.transforms[:6]]
    assert sizes == [(16, 0), (16, 0), (4, 0), (4, 2), (16, 8), (16, 8)]


@pytest.mark.parametrize("start", [fp.PixelStart(levels=16), fp.PatchStart(4)])
def test_a_start_leaves_little_correlation(start):
    stack = fp.ImageStack((1, 8, 8), 2, (8,), start=start)
    x = digits(2000, 1, 8, 8)
    stack.start(x)
    y = stack.eval()(x)[0].detach().flatten(1)
    assert abs(float(y.std()) - 1) < 0.1
    correlation = torch.corrcoef(y.T) - torch.eye(64)
    assert float(correlation.square().mean().sqrt()) < 0.06


def test_residual_transforms_start_as_identities():
    stack = fp.ImageStack((1, 8, 8), 2, (8,))
    for part in stack.transforms[1:3]:
        x = torch.randn(3, 1, 8, 8)
        y, ladj = part.eval()(x)
        assert torch.equal(y, x)
        assert torch.equal(ladj, torch.zeros(3))


def test_a_start_costs_fewer_bits_than_the_levels():
    x, new = digits(2000, 1, 8, 8), digits(200, 1, 8, 8)
    stack = fp.ImageStack((1, 8, 8), 1, (8,), start=fp.PixelStart(levels=16))
    stack.start(x)
    with torch.no_grad():
        y, ladj = stack.eval()(new)
    log_prob = torch.distributions.Normal(0, 1).log_prob(y).flatten(1).sum(1) + ladj
    bits = fp.bits_per_dim(log_prob, (1, 8, 8), levels=16).mean()
    assert float(bits) < 3  # of 4, by even noise


def test_the_published_flow():
    stack = fp.PublishedImageStack((1, 8, 8), (2, 1), (4, 4), dense_transforms=1, alpha=1e-5, context_features=3)
    assert kinds(stack) == (
        ["Logit", "ActNorm"]
        + ["ResidualTransform", "ActNorm"] * 2
        + ["Squeeze", "ActNorm"]
        + ["ResidualTransform", "ActNorm"] * 2
    )
    assert stack.context_features == 3
    assert (stack.event_shape, stack.latent_shape) == ((1, 8, 8), (4, 4, 4))
    g = stack.transforms[2].g
    assert [tuple(layer.weight.shape[2:]) for layer in g.layers] == [(3, 3), (1, 1), (3, 3)]
    assert isinstance(g.entry, fp.LipSwish)


def test_sides_that_cannot_be_squeezed_are_refused_at_once():
    with pytest.raises(fp.ShapeError, match="sides 2 divides"):
        fp.PublishedImageStack((1, 6, 6), (1, 1, 1), (4,), dense_transforms=0)


def zuko_samples(flow, count):
    return flow(None).sample((count,))


@pytest.mark.parametrize(
    ("make", "log_prob", "sample"),
    [
        (flowplug_nflows.ImageFlow, lambda flow, x: flow.log_prob(x), lambda flow, n: flow.sample(n)),
        (flowplug_normflows.ImageFlow, lambda flow, x: flow.log_prob(x), lambda flow, n: flow.sample(n)[0]),
        (flowplug_zuko.ImageFlow, lambda flow, x: flow().log_prob(x), zuko_samples),
    ],
    ids=HOSTS,
)
def test_flows_of_hosts_have_the_density_of_the_stack(make, log_prob, sample):
    stack = fp.ImageStack((1, 4, 4), 2, (8,), start=fp.PixelStart(levels=16))
    stack.start(digits(500, 1, 4, 4))
    flow, x = make(stack).eval(), digits(5, 1, 4, 4)
    with torch.no_grad():
        y, ladj = stack.eval()(x)
        wanted = torch.distributions.Normal(0, 1).log_prob(y).flatten(1).sum(1) + ladj
        assert torch.allclose(log_prob(flow, x), wanted, atol=1e-4, rtol=1e-5)
        samples = sample(flow, 200)
    assert samples.shape == (200, 1, 4, 4)
    # Of the range of the data, and as often 0.
    inside = ((samples > -0.05) & (samples < 1.05)).float().mean()
    assert float(inside) > 0.95


@pytest.mark.parametrize(
    "make", [flowplug_nflows.ImageFlow, flowplug_normflows.ImageFlow, flowplug_zuko.ImageFlow], ids=HOSTS
)
def test_a_stack_of_unknown_sizes_has_no_base(make):
    with pytest.raises(fp.ShapeError, match=r"known sizes; Logit has latent_shape None"):
        make(fp.Logit())
