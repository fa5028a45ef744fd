"""The transform and the fourth host's adapter that docs/extend.md writes."""

import pytest
import torch
from torch import distributions, nn

import flowplug as fp
from cases import Row
from matrix import cells, check

OVERFLOWS = {"a tail heavier than a line takes 1e30 beyond the range of single precision": ("scales",)}


@pytest.mark.parametrize(
    ("name", "law", "way"), cells({"page": Row(None, context=2, exempt=OVERFLOWS)}, whole={"page"})
)
def test_the_transform_of_the_page_obeys_every_law(page, name, law, way):
    def make(**keywords):
        transform = page.SinhArcsinh(3, 2, **keywords)
        nn.init.uniform_(transform.tail, -0.5, 0.5)
        return transform

    check(Row(make, context=2), law, way)


def test_a_flow_in_torch_has_its_density_and_gradients(page):
    core, c = fp.ResidualStack(3, 1, (8,), context_features=2), torch.randn(5, 2)
    base = distributions.Independent(distributions.Normal(torch.zeros(3), torch.ones(3)), 1)
    x = torch.randn(5, 3)
    core.start(x, c)
    density = distributions.TransformedDistribution(base, [page.TorchTransform(core, c)])
    y, ladj = core(x, c)
    torch.testing.assert_close(density.log_prob(x), base.log_prob(y) + ladj)
    sample = density.rsample((2, 5))
    assert sample.shape == (2, 5, 3)
    (density.log_prob(x).sum() + sample.sum()).backward()
    assert all(p.grad is not None for p in core.parameters())


def test_there_and_back_is_the_same_transform(page):
    core, x = fp.ResidualTransform(fp.LipschitzMLP(3)).eval(), torch.randn(5, 3)
    twin = page.from_torch(page.TorchTransform(core))
    for direction, wanted in ((twin, core), (twin.inverse, core.inverse)):
        for got, right in zip(direction(x), wanted(x), strict=True):
            torch.testing.assert_close(got, right)


@pytest.mark.parametrize(
    "transform",
    [
        distributions.AffineTransform(1.0, 2.0),
        distributions.ComposeTransform([distributions.TanhTransform(), distributions.AffineTransform(0.0, 9.0)]),
        distributions.TanhTransform().inv.inv,
    ],
)
def test_a_transform_of_torch_has_its_log_det(page, transform):
    bridge, z = page.from_torch(transform), torch.randn(5, 3)
    x, ladj = bridge.inverse(z)
    jacobian = torch.autograd.functional.jacobian(transform, z[0])
    torch.testing.assert_close(ladj[0], torch.linalg.slogdet(jacobian).logabsdet)
    torch.testing.assert_close(bridge(x)[0], z)
    torch.testing.assert_close(bridge(x)[1], -ladj)


def test_the_bridge_refuses_what_it_cannot_take(page):
    with pytest.raises(TypeError, match="flowplug transform already"):
        page.from_torch(fp.ActNorm(3))
    with pytest.raises(TypeError, match="pass a transform"):
        page.from_torch(distributions.Normal(0.0, 1.0))
    with pytest.raises(fp.InverseNotAvailable, match="AbsTransform"):
        page.from_torch(distributions.AbsTransform())
    with pytest.raises(fp.ShapeError, match="only the host's own classes may change the shape"):
        page.from_torch(distributions.StickBreakingTransform()).inverse(torch.randn(5, 3))
