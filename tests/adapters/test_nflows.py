"""Inside nflows: the workflows of its README and notebooks, and what its own tests demand."""

import copy
import io

import pytest
import torch
from nflows import distributions, flows, transforms
from nflows.distributions import ConditionalDiagonalNormal
from nflows.nn.nets import ConvResidualNet, ResidualNet
from torch import nn

import flowplug as fp
import flowplug_nflows
from helpers import integral
from host_checks import check_forward_inverse, train


class TestWorkflows:
    def test_readme(self):
        transform = transforms.CompositeTransform(
            [
                transforms.MaskedAffineAutoregressiveTransform(features=2, hidden_features=4),
                flowplug_nflows.ResidualTransform(features=2, hidden_features=64),
                transforms.RandomPermutation(features=2),
            ]
        )
        flow, x = flows.Flow(transform, distributions.StandardNormal([2])), 2 + torch.randn(64, 2)
        train(flow, lambda: -flow.log_prob(x).mean())
        assert flow.sample(100).shape == (100, 2)
        samples, log_prob = flow.sample_and_log_prob(100)
        torch.testing.assert_close(flow.log_prob(samples), log_prob, atol=1e-4, rtol=0)

    def test_conditional_moons(self):
        parts = []
        for _ in range(2):
            parts.append(transforms.ReversePermutation(features=2))
            parts.append(
                transforms.MaskedAffineAutoregressiveTransform(features=2, hidden_features=8, context_features=1)
            )
            parts.append(flowplug_nflows.ResidualTransform(features=2, hidden_features=32, context_features=1))
        base = ConditionalDiagonalNormal([2], context_encoder=nn.Linear(1, 4))
        flow = flows.Flow(transforms.CompositeTransform(parts), base)
        x, y = torch.randn(32, 2), torch.randint(2, (32, 1)).to(torch.get_default_dtype())
        train(flow, lambda: -flow.log_prob(inputs=x, context=y).mean())
        assert flow.sample(5, context=y).shape == (32, 5, 2)

    def test_multiscale_images(self):
        c, h, w = 1, 4, 4
        mct = transforms.MultiscaleCompositeTransform(num_transforms=2)
        for _ in range(2):
            squeeze = transforms.SqueezeTransform()
            c, h, w = squeeze.get_output_shape(c, h, w)
            mask = torch.arange(c) % 2
            coupling = transforms.AffineCouplingTransform(
                mask, lambda i, o: ConvResidualNet(i, o, hidden_channels=4, num_blocks=1)
            )
            residual = flowplug_nflows.ResidualTransform((c, h, w), hidden_features=16)
            parts = [squeeze, transforms.ActNorm(c), transforms.OneByOneConvolution(c), coupling, residual]
            shape = mct.add_transform(transforms.CompositeTransform(parts), (c, h, w))
            if shape is not None:
                c, h, w = shape
        flow, x = flows.Flow(mct, distributions.StandardNormal([16])), torch.randn(8, 1, 4, 4)
        train(flow, lambda: -flow.log_prob(x).mean())
        assert flow.eval().sample(3).shape == (3, 1, 4, 4)


class TestHostsOwnChecks:
    @pytest.mark.parametrize("features", [1, 2, 20, (2, 4, 4)])
    def test_forward_and_inverse_are_consistent(self, features):
        event = (features,) if isinstance(features, int) else features
        transform = flowplug_nflows.ResidualTransform(features, hidden_features=16, logdet=fp.ExactLogDet())
        check_forward_inverse(transform, torch.randn(10, *event))

    def test_with_context(self):
        transform = flowplug_nflows.ResidualTransform(3, 16, context_features=5, logdet=fp.ExactLogDet())
        check_forward_inverse(transform, torch.randn(10, 3), torch.randn(10, 5))

    def test_an_unconditional_layer_ignores_context_of_any_shape(self):
        transform = flowplug_nflows.ResidualTransform(3, 16)
        flow = flows.Flow(transform, distributions.StandardNormal([3]))
        x = torch.randn(10, 3)
        assert torch.equal(flow.transform_to_noise(x, torch.randn(20, 5, 6)), flow.transform_to_noise(x))

    def test_inside_a_coupling_that_adds_in_place(self):
        inner = flowplug_nflows.ResidualTransform(1, 8)
        coupling = transforms.AffineCouplingTransform(
            torch.tensor([1, 0]),
            lambda i, o: ResidualNet(i, o, hidden_features=4),
            unconditional_transform=lambda features: inner,
        )
        flow, x = flows.Flow(coupling, distributions.StandardNormal([2])), torch.randn(16, 2)
        train(flow, lambda: -flow.log_prob(x).mean())

    def test_a_solver_that_fails_raises_nflows_error(self):
        core = fp.ResidualTransform(fp.LipschitzMLP(3), solver=fp.FixedPoint(max_steps=1))
        with pytest.raises(transforms.InverseNotAvailable, match="was not found in 1 steps"):
            flowplug_nflows.NflowsTransform(core).inverse(torch.randn(4, 3))

    def test_an_activation_function_is_refused(self):
        with pytest.raises(TypeError):
            flowplug_nflows.ResidualTransform(3, 16, activation=torch.nn.functional.relu)


def mixed_flow():
    parts = [
        transforms.PiecewiseRationalQuadraticCouplingTransform(
            torch.tensor([1, 0]), lambda i, o: ResidualNet(i, o, 8), tails="linear", tail_bound=3.0
        ),
        flowplug_nflows.ResidualTransform(2, 16),
        flowplug_nflows.DenseTransform(2, activation=fp.SmoothLeakyReLU(0.7)),
        transforms.MaskedAffineAutoregressiveTransform(2, 8),
        transforms.InverseTransform(flowplug_nflows.ResidualTransform(2, 16)),
        transforms.LULinear(2),
        flowplug_nflows.NflowsTransform(fp.ActNorm(2)),
    ]
    return flows.Flow(transforms.CompositeTransform(parts), distributions.StandardNormal([2]))


@pytest.mark.slow
def test_mixed_flow_normalises():
    flow = mixed_flow().double()
    flow.log_prob(0.5 * torch.randn(200, 2, dtype=torch.float64))
    assert abs(integral(flow.eval().log_prob, side=801, reach=10.0) - 1) < 1e-4


def test_gradcheck_of_a_mixed_flow():
    flow = mixed_flow().double().eval()
    assert torch.autograd.gradcheck(flow.log_prob, (torch.randn(3, 2, dtype=torch.float64, requires_grad=True),))


def test_saving_and_copying():
    flow, x = mixed_flow(), torch.randn(64, 2)
    wanted = flow.log_prob(x)
    fresh, buffer = mixed_flow(), io.BytesIO()
    fresh.load_state_dict(flow.state_dict())
    torch.save(flow, buffer)
    buffer.seek(0)
    for twin in (fresh, copy.deepcopy(flow), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin.log_prob(x), wanted)


def test_ready_made_flow():
    flow = flowplug_nflows.ResidualFlow(3, 16, num_layers=2, num_blocks_per_layer=2)
    x = 3 + torch.randn(64, 3)
    train(flow, lambda: -flow.log_prob(x).mean())
    assert flow.sample(5).shape == (5, 3)
    conditional = flowplug_nflows.ResidualFlow(3, 16, num_layers=2, num_blocks_per_layer=1, context_features=2)
    context = torch.randn(64, 2)
    train(conditional, lambda: -conditional.log_prob(x + context[:, :1], context).mean())
