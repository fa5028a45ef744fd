"""Inside zuko: the workflows of its README and tutorials, and what its own tests demand."""

import math

import pytest
import torch
import zuko
from torch.distributions import ComposeTransform, Independent, Normal, TransformedDistribution
from zuko.distributions import DiagNormal
from zuko.flows import Flow, MaskedAutoregressiveTransform
from zuko.lazy import UnconditionalDistribution, UnconditionalTransform
from zuko.transforms import RotationTransform

import flowplug as fp
import flowplug_zuko
from helpers import integral
from host_checks import ZukoChecks


def nsf_with_residual():
    flow = zuko.flows.NSF(3, 5, transforms=2, hidden_features=(16, 16))
    flow.transform.transforms.insert(1, flowplug_zuko.ResidualTransform(3, 5))
    return flow


def custom_flow():
    return Flow(
        transform=[
            MaskedAutoregressiveTransform(3, 5, hidden_features=(16, 16)),
            flowplug_zuko.ResidualTransform(3, 5),
            UnconditionalTransform(RotationTransform, torch.randn(3, 3)),
        ],
        base=UnconditionalDistribution(DiagNormal, loc=torch.zeros(3), scale=torch.ones(3), buffer=True),
    )


def residual_flow():
    return flowplug_zuko.ResidualFlow(3, 5, transforms=2, hidden_features=(16,), exact=True)


def inverse_flow():
    flow = residual_flow()
    return Flow(flow.transform.inv, flow.base)


FLOWS = [nsf_with_residual, custom_flow, residual_flow, inverse_flow]


@pytest.fixture(params=FLOWS)
def flow(request):
    built = request.param()
    flowplug_zuko.start(built, torch.randn(64, 3), torch.randn(5))
    return built


class TestFlows(ZukoChecks):
    """Of a flow of flowplug's transforms."""


def test_reverse_kl_tutorial():
    flow = zuko.flows.NSF(2, transforms=1, hidden_features=(16, 16))
    flow.transform.transforms.append(flowplug_zuko.ResidualTransform(2))
    flow = Flow(flow.transform.inv, flow.base)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        x, log_prob = flow().rsample_and_log_prob((256,))
        energy = ((x - 1) ** 2).sum(-1)
        loss = (log_prob + energy).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_reverse_kl_through_the_solver():
    flow = flowplug_zuko.ResidualFlow(2, transforms=2, hidden_features=(16,))
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        x, log_prob = flow().rsample_and_log_prob((256,))
        loss = (log_prob + ((x - 1) ** 2).sum(-1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


class TestNoise:
    @pytest.fixture
    def lazy(self):
        return flowplug_zuko.ResidualTransform(3, exact=False)

    def test_one_transform_is_one_realisation(self, lazy):
        x = torch.randn(6, 3)
        t = lazy()
        y, ladj = t.call_and_ladj(x)
        assert torch.equal(t.log_abs_det_jacobian(x, y), ladj)
        back, inverse_ladj = t.inv.call_and_ladj(y)
        atol = 1e-9 if x.dtype == torch.float64 else 1e-4
        torch.testing.assert_close(back, x, atol=atol, rtol=0)
        torch.testing.assert_close(inverse_ladj, -ladj, atol=atol, rtol=0)
        assert not torch.equal(lazy().call_and_ladj(x)[1], ladj)

    def test_eval_mode_is_deterministic(self, lazy):
        x = torch.randn(6, 3)
        lazy.eval()
        assert torch.equal(lazy().call_and_ladj(x)[1], lazy().call_and_ladj(x)[1])


class TestTorchDistributions:
    def test_cache_saves_the_solve(self):
        lazy = flowplug_zuko.ResidualTransform(3)
        t, y = lazy().with_cache(), torch.randn(6, 3)
        x = t.inv(y)
        assert t(x) is y
        assert t.with_cache(1) is t
        assert t.with_cache(0).seed == t.seed
        composed = ComposeTransform([t, lazy().with_cache()], cache_size=1)
        assert composed(x).shape == (6, 3)

    def test_transformed_distribution(self):
        lazy = flowplug_zuko.ResidualTransform(3)
        base = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
        distribution = TransformedDistribution(base, [lazy().inv.with_cache()])
        x = distribution.rsample((6,))
        y, ladj = lazy.eval()().call_and_ladj(x)
        atol = 1e-9 if x.dtype == torch.float64 else 1e-3
        torch.testing.assert_close(distribution.log_prob(x), base.log_prob(y) + ladj, atol=atol, rtol=0)

    def test_images_have_three_event_dims(self):
        t, x = flowplug_zuko.ResidualTransform((2, 4, 4))(), torch.randn(5, 2, 4, 4)
        assert t.domain.event_dim == t.codomain.event_dim == 3
        assert t.call_and_ladj(x)[1].shape == (5,)
        base = DiagNormal(torch.zeros(2, 4, 4), torch.ones(2, 4, 4), ndims=3)
        assert zuko.distributions.NormalizingFlow(t, base).log_prob(x).shape == (5,)


@pytest.mark.parametrize("make", [flowplug_zuko.ResidualTransform, flowplug_zuko.ResidualFlow])
class TestExact:
    @pytest.mark.parametrize(("exact", "logdet"), [(None, None), (True, fp.ExactLogDet()), (False, fp.Krylov())])
    def test_is_short_for_a_log_det(self, make, exact, logdet):
        cores = [part for part in make(3, exact=exact).modules() if isinstance(part, fp.ResidualTransform)]
        assert cores
        assert all((core.logdet, core.eval_logdet) == (logdet, None) for core in cores)

    def test_is_refused_beside_one(self, make):
        message = r"exact=False is short for logdet=Krylov\(.*\): drop exact, as logdet=ExactLogDet\(\) is given"
        with pytest.raises(TypeError, match=message):
            make(3, exact=False, logdet=fp.ExactLogDet())


def test_missing_context_is_a_value_error():
    with pytest.raises(ValueError, match="pass a context"):
        flowplug_zuko.ResidualTransform(3, 5)()(torch.randn(4, 3))


def mixed_flow():
    parts = [
        *zuko.flows.MAF(2, transforms=1, hidden_features=(8,)).transform.transforms,
        flowplug_zuko.ResidualTransform(2),
        *zuko.flows.NSF(2, transforms=1, hidden_features=(8,)).transform.transforms,
        flowplug_zuko.DenseTransform(2, activation=fp.SmoothLeakyReLU(0.7)),
        flowplug_zuko.ResidualTransform(2).inv,
        UnconditionalTransform(RotationTransform, torch.randn(2, 2)),
        flowplug_zuko.ZukoTransform(fp.ActNorm(2)),
    ]
    return Flow(parts, zuko.flows.MAF(2).base)


@pytest.mark.slow
def test_mixed_flow_normalises():
    flow = mixed_flow().double()
    flow().log_prob(0.5 * torch.randn(200, 2, dtype=torch.float64))
    assert abs(integral(flow.eval()().log_prob) - 1) < 1e-4


def test_gradcheck_of_a_mixed_flow():
    flow = mixed_flow().double().eval()
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: flow().log_prob(x), (x,))
    assert torch.autograd.gradcheck(lambda z: flow().transform.inv.call_and_ladj(z), (x,))


def test_weights_move_between_transforms_by_their_core():
    a, b, x = flowplug_zuko.ResidualTransform(3), flowplug_zuko.ResidualTransform(3), torch.randn(4, 3)
    b.core.load_state_dict(a.core.state_dict())
    assert torch.equal(a()(x), b()(x))
    assert math.isclose(float(a.core.lipschitz), float(b.core.lipschitz))


def test_dense_flow():
    flow, x = flowplug_zuko.DenseFlow(3, transforms=2), torch.randn(16, 3)
    layers = [part for part in flow.modules() if isinstance(part, fp.DenseTransform)]
    assert [part.activation is None for part in layers] == [False, True]
    y, ladj = flow().transform.call_and_ladj(x)
    torch.testing.assert_close(flow().transform.inv(y), x, atol=1e-4, rtol=1e-4)
    base = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    torch.testing.assert_close(flow().log_prob(x), base.log_prob(y).sum(1) + ladj)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        flowplug_zuko.DenseFlow(3, transforms=0)


def test_masked_layers_have_no_known_bound():
    mask = torch.ones(2, 2).tril().bool()
    with pytest.raises(fp.LipschitzError, match="MaskedLinear replaces the forward of Linear"):
        fp.ResidualTransform(zuko.nn.MaskedMLP(mask, (8,)))
