"""Flows on images in each host: bases, scales, exact densities."""

import copy
import math

import normflows as nf
import pytest
import torch
from nflows import distributions, flows
from nflows import transforms as nt
from zuko.lazy import Flow

import flowplug as fp
from flowplug_nflows import NflowsTransform
from flowplug_normflows import NormflowsFlow
from flowplug_zuko import StandardNormal, ZukoTransform

EVENT = (1, 2, 2)


def blocks(channels):
    """Trained apart from the identity, with exact log-dets."""
    g = fp.LipschitzCNN(channels, (8,), bound=0.9)
    with torch.no_grad():
        for parameter in g.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    exact = fp.ExactLogDet()
    return fp.ResidualTransform(g, logdet=exact, eval_logdet=exact)


def parts():
    """An image flow on 2 x 2 pixels, one transform at a time."""
    return [fp.Logit(), fp.ActNorm(1, event_dim=3), blocks(1), fp.Squeeze(), fp.ActNorm(4, event_dim=3), blocks(4)]


class Nflows:
    def __init__(self, transforms, latent):
        layers = [NflowsTransform(part) for part in transforms]
        self.flow = flows.Flow(nt.CompositeTransform(layers), distributions.StandardNormal(list(latent)))

    def log_prob(self, x):
        return self.flow.log_prob(x)

    def sample(self, count):
        return self.flow.sample(count)

    def to_latent(self, x):
        return self.flow._transform(x)


class Normflows:
    def __init__(self, transforms, latent):
        layers = [NormflowsFlow(part) for part in reversed(transforms)]
        base = nf.distributions.DiagGaussian(latent, trainable=False)
        self.flow = nf.NormalizingFlow(base, layers)

    def log_prob(self, x):
        return self.flow.log_prob(x)

    def sample(self, count):
        return self.flow.sample(count)[0]

    def to_latent(self, x):
        return self.flow.inverse_and_log_det(x)


class Zuko:
    def __init__(self, transforms, latent):
        self.flow = Flow([ZukoTransform(part) for part in transforms], StandardNormal(latent))

    def log_prob(self, x):
        return self.flow().log_prob(x)

    def sample(self, count):
        return self.flow().sample((count,))

    def to_latent(self, x):
        return self.flow().transform.call_and_ladj(x)


HOSTS = {"nflows": Nflows, "normflows": Normflows, "zuko": Zuko}
hosts = pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)


def started(host, transforms, latent):
    core = fp.ComposedTransform(*transforms)
    core.start(torch.rand(500, *EVENT).square())
    model = host(transforms, latent)
    model.flow.eval()
    return model


@hosts
class TestWholeFlow:
    def test_log_det_is_that_of_autograds_jacobian(self, host, eps):
        model, x = started(host, parts(), (4, 1, 1)), torch.rand(6, *EVENT)
        _, ladj = model.to_latent(x)
        jacobians = torch.stack(
            [torch.autograd.functional.jacobian(lambda row: model.to_latent(row[None])[0][0], row) for row in x]
        )
        wanted = torch.linalg.slogdet(jacobians.reshape(6, 4, 4)).logabsdet
        torch.testing.assert_close(ladj, wanted, atol=1000 * eps, rtol=1000 * eps)

    def test_density_is_that_of_the_latents(self, host, eps):
        model, x = started(host, parts(), (4, 1, 1)), torch.rand(6, *EVENT)
        y, ladj = model.to_latent(x)
        wanted = ladj - y.square().sum((1, 2, 3)) / 2 - 2 * math.log(2 * math.pi)
        torch.testing.assert_close(model.log_prob(x), wanted, atol=1000 * eps, rtol=1000 * eps)

    def test_samples_have_a_density(self, host):
        model = started(host, parts(), (4, 1, 1))
        with torch.no_grad():
            x = model.sample(20)
            assert x.shape == (20, *EVENT)
            assert model.log_prob(x).isfinite().all()

    def test_trains(self, host):
        model = started(host, parts(), (4, 1, 1))
        model.flow.train()
        data = fp.Dequantize()(torch.randint(0, 128, (64, *EVENT)))
        optimizer = torch.optim.Adam(model.flow.parameters(), lr=1e-2)
        losses = []
        for _ in range(20):
            loss = fp.bits_per_dim(model.log_prob(data), EVENT).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0] - 0.1

    def test_copies_are_the_same(self, host):
        model, x = started(host, parts(), (4, 1, 1)), torch.rand(6, *EVENT)
        twin = copy.copy(model)
        twin.flow = copy.deepcopy(model.flow)
        assert torch.equal(twin.log_prob(x), model.log_prob(x))

    def test_integrates_to_one(self, host):
        """Of two pixels, over the whole interval of the logit, which alpha makes longer than [0, 1]."""
        chain = [fp.Logit(0.05), fp.ActNorm(1, event_dim=3), blocks(1), fp.Reshape((1, 1, 2), (2, 1, 1))]
        chain += [fp.ActNorm(2, event_dim=3), blocks(2)]
        fp.ComposedTransform(*chain).start(torch.rand(500, 1, 1, 2).square())
        model = host(chain, (2, 1, 1))
        model.flow.eval()
        side, edge = 400, 0.05 / 0.9
        # The middle of every cell, as the density ends in zeros.
        line = -edge + (1 + 2 * edge) * (torch.arange(side) + 0.5) / side
        points = torch.cartesian_prod(line, line).reshape(-1, 1, 1, 2)
        with torch.no_grad():
            mass = sum(float(model.log_prob(rows).double().exp().sum()) for rows in points.split(20_000))
        assert mass * ((1 + 2 * edge) / side) ** 2 == pytest.approx(1, abs=1e-3)


def scale(channels):
    return fp.ComposedTransform(fp.Squeeze(), fp.ActNorm(4 * channels, event_dim=3), blocks(4 * channels))


@hosts
def test_several_scales_as_one_transform(host):
    event = (1, 4, 4)
    core = fp.ComposedTransform(fp.Logit(), fp.MultiscaleTransform(scale(1), scale(2), event_shape=event))
    core.start(torch.rand(300, *event))
    model = host([core], (16,))
    model.flow.eval()
    x = model.sample(7).detach()
    assert x.shape == (7, *event)
    torch.testing.assert_close(core.inverse(core(x)[0])[0], x)
    y, ladj = core(x)
    wanted = ladj - y.square().sum(1) / 2 - 8 * math.log(2 * math.pi)
    torch.testing.assert_close(model.log_prob(x), wanted)


def test_inside_the_scales_of_nflows():
    scales, left = nt.MultiscaleCompositeTransform(2), (1, 4, 4)
    for part in (scale(1), scale(2)):
        layers = [NflowsTransform(layer) for layer in part.transforms]
        left = scales.add_transform(nt.CompositeTransform(layers), part.forward_shape(left))
    flow = flows.Flow(nt.CompositeTransform([NflowsTransform(fp.Logit()), scales]), distributions.StandardNormal([16]))
    flow.log_prob(torch.rand(100, 1, 4, 4))
    flow.eval()
    x = flow.sample(5).detach()
    y, ladj = flow._transform(x)
    torch.testing.assert_close(flow._transform.inverse(y)[0], x)
    jacobian = torch.autograd.functional.jacobian(lambda row: flow._transform(row[None])[0][0], x[0])
    torch.testing.assert_close(torch.linalg.slogdet(jacobian.reshape(16, 16)).logabsdet, ladj[0])


def test_inside_the_scales_of_normflows():
    levels = [
        [NormflowsFlow(blocks(8)), nf.flows.Squeeze()],
        [NormflowsFlow(blocks(4)), NormflowsFlow(fp.Squeeze())],
    ]
    bases = [nf.distributions.DiagGaussian(shape, trainable=False) for shape in ((8, 1, 1), (2, 2, 2))]
    flow = nf.MultiscaleFlow(bases, levels, [nf.flows.Merge()], NormflowsFlow(fp.Logit()), class_cond=False).eval()
    with torch.no_grad():
        x, log_q = flow.sample(5)
    assert x.shape == (5, 1, 4, 4)
    torch.testing.assert_close(flow.log_prob(x, None), log_q)
    z, ladj = flow.inverse_and_log_det(x)

    def latent(row):
        return torch.cat([part.flatten() for part in flow.inverse_and_log_det(row[None])[0]])

    jacobian = torch.autograd.functional.jacobian(latent, x[0])
    torch.testing.assert_close(torch.linalg.slogdet(jacobian.reshape(16, 16)).logabsdet, ladj[0])
    torch.testing.assert_close(flow.forward_and_log_det(z)[0], x)


class TestStandardNormalOfZuko:
    @pytest.mark.parametrize("shape", [3, (3,), (2, 3), (1, 4, 4)])
    def test_is_one_event(self, shape):
        base = StandardNormal(shape)
        sizes = (shape,) if isinstance(shape, int) else shape
        assert base().event_shape == sizes
        x = torch.randn(5, 6, *sizes)
        wanted = torch.distributions.Normal(0.0, 1.0).log_prob(x).flatten(2).sum(2)
        torch.testing.assert_close(base().log_prob(x), wanted)

    def test_has_buffers_only_and_moves_with_the_flow(self):
        base = StandardNormal((1, 2, 2)).to(torch.float16)
        assert not list(base.parameters())
        assert base().sample().dtype == torch.float16

    def test_fits_the_flow_of_a_context(self):
        flow = Flow([ZukoTransform(fp.Squeeze())], StandardNormal((4, 1, 1)))
        assert flow(torch.randn(3, 5)).log_prob(torch.randn(7, 3, 1, 2, 2)).shape == (7, 3)
        assert flow(torch.randn(3, 5)).sample((7,)).shape == (7, 3, 1, 2, 2)
        assert flow().event_shape == (1, 2, 2)
        assert "StandardNormal" in repr(flow)

    @pytest.mark.parametrize("shape", [0, (2, 0)])
    def test_sizes(self, shape):
        with pytest.raises(fp.ShapeError, match="positive sizes"):
            StandardNormal(shape)


def test_bound_transforms_tell_their_shapes():
    transform = ZukoTransform(fp.ComposedTransform(fp.Squeeze(), fp.Reshape((4, 1, 2), 8)))()
    assert (transform.domain.event_dim, transform.codomain.event_dim) == (3, 1)
    assert transform.forward_shape((5, 1, 2, 4)) == torch.Size([5, 8])
    assert transform.inverse_shape((5, 6, 8)) == torch.Size([5, 6, 1, 2, 4])
    assert transform.inv.forward_shape((8,)) == torch.Size([1, 2, 4])
