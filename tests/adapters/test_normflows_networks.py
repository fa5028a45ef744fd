"""normflows' own networks and checkpoints within flowplug's ``Residual``."""

import copy

import normflows as nf
import pytest
import torch

import flowplug as fp
import flowplug_normflows

# That nothing keeps these networks' bounds while they train is said at construction, and tested elsewhere.
# The warning is right for each of them: nothing keeps normflows' bounds between its updates.
pytestmark = pytest.mark.filterwarnings("ignore::flowplug.UnboundedBranchWarning")


def cnn(channels=(2, 8, 2), kernels=(3, 3), scale=1.0, **options):
    net = nf.nets.LipschitzCNN(list(channels), list(kernels), **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(scale)
    return net.to(torch.zeros(()).device)  # normflows makes weights on the CPU


def mlp(**options):
    return nf.nets.LipschitzMLP([2, 16, 2], **options).to(torch.zeros(()).device)


def spectral_norm(layer, weight, side):
    """The norm of a layer's operator on images of this size, by its matrix."""
    basis = torch.eye(layer.in_channels * side**2).reshape(-1, layer.in_channels, side, side)
    columns = torch.nn.functional.conv2d(basis, weight, None, layer.stride, layer.padding)
    return float(torch.linalg.matrix_norm(columns.flatten(1), 2))


class TestConvolution:
    @pytest.mark.parametrize("kernel", [1, 3, (3, 1), 5])
    def test_its_bound_is_that_of_the_operator_with_the_weight_in_use(self, kernel):
        make = nf.nets.lipschitz.InducedNormConv2d
        layer = make(2, 3, kernel, 1, 1, n_iterations=5).to(torch.zeros(()).device)
        with torch.no_grad():
            layer.weight.mul_(5)
        raw = fp.lipschitz_bound(layer)
        assert not layer.initialized
        x = torch.randn(1, 2, 4, 4)
        layer(x)
        used = layer.compute_weight(update=False).detach()
        bound = fp.lipschitz_bound(layer)
        assert bound.domain == 2.0
        assert float(bound) < float(raw)  # the one before the first image holds for whatever is used after it
        for side in (3, 4, 16):
            assert spectral_norm(layer, used, side) <= float(bound) * (1 + 1e-6)
        assert spectral_norm(layer, used, 16) >= 0.85 * float(bound)
        torch.testing.assert_close(layer(x), torch.nn.functional.conv2d(x, used, layer.bias, 1, 1))

    def test_only_2_norm_layers_have_a_bound(self):
        layer = nf.nets.lipschitz.InducedNormConv2d(3, 3, 3, 1, 1, domain=1, codomain=1, n_iterations=5)
        with pytest.raises(fp.LipschitzError, match=r"InducedNormConv2d\(domain=2, codomain=2\)"):
            fp.lipschitz_bound(layer)
        layer = nf.nets.lipschitz.InducedNormLinear(3, 3, domain=1, codomain=1, n_iterations=5)
        with pytest.raises(fp.LipschitzError, match=r"InducedNormLinear\(domain=2, codomain=2\)"):
            fp.lipschitz_bound(layer)


class TestOneImport:
    @pytest.mark.parametrize("zeros", [True, False])
    def test_a_model_of_images_trains_and_inverts(self, zeros):
        flows = [
            flowplug_normflows.Residual(cnn(lipschitz_const=0.9, init_zeros=zeros), reduce_memory=True)
            for _ in range(2)
        ]
        base = nf.distributions.DiagGaussian((2, 4, 4), trainable=False)
        model, x = nf.NormalizingFlow(base, flows), torch.randn(16, 2, 4, 4)
        base.to(x)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            model.forward_kld(x).backward()
            optimizer.step()
            nf.utils.update_lipschitz(model, 50)
        model.eval()
        z, log_det = model.inverse_and_log_det(x)
        back, log_det_back = model.forward_and_log_det(z)
        torch.testing.assert_close(back, x, atol=1e-5, rtol=0)
        torch.testing.assert_close(log_det + log_det_back, torch.zeros_like(log_det), atol=1e-4, rtol=0)

    @pytest.mark.parametrize("kernels", [(3, 1, 3), (3, 3, 3)])
    def test_large_weights_are_within_normflows_default_at_once(self, kernels):
        net = cnn((3, 16, 16, 3), kernels, scale=20.0, init_zeros=False)
        assert float(fp.lipschitz_bound(net)) > 1000
        assert 0.5 < float(flowplug_normflows.Residual(net).core.lipschitz) < 1

    def test_a_bound_above_1_says_what_lowers_it(self):
        with pytest.raises(fp.LipschitzError, match=r"update_lipschitz\(model, 50\).*lower lipschitz_const"):
            flowplug_normflows.Residual(cnn(scale=20.0, init_zeros=False, lipschitz_const=1.5))
        with pytest.raises(fp.LipschitzError) as caught:
            flowplug_normflows.Residual(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LeakyReLU(9.0)))
        assert "normflows" not in str(caught.value)

    @pytest.mark.parametrize(("make", "event"), [(mlp, (2,)), (cnn, (2, 4, 4))])
    def test_a_network_that_outgrew_its_bound_is_refused_until_it_is_updated(self, make, event):
        net = make(init_zeros=False, lipschitz_const=0.9)
        flow, x = flowplug_normflows.Residual(net), torch.randn(8, *event)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        for call in (flow.forward, flow.eval().inverse):
            with pytest.raises(fp.LipschitzError, match=f"g = {type(net).__name__} has the Lipschitz bound.*update_l"):
                call(x)
        nf.utils.update_lipschitz(net, 200)
        flow.forward(x)
        flow.inverse(x)


class TestStates:
    """Those of ``normflows.flows.Residual``."""

    @pytest.mark.parametrize("make", [mlp, cnn, lambda: fp.LipschitzMLP(2), lambda: fp.LipschitzCNN(2, (4,))])
    def test_one_flow(self, make):
        torch.manual_seed(1)
        old = nf.flows.Residual(make(), geom_p=0.3, lamb=4.0, n_samples=3).to(torch.zeros(()).device)
        event = (2, 4, 4) if "CNN" in type(old.iresblock.nnet).__name__ else (2,)
        x = torch.randn(5, *event)
        wanted = x + old.iresblock.nnet(x)
        state = old.state_dict()
        before = dict(state)
        flow = flowplug_normflows.Residual(make())
        seed = flow.core.noise_seed.clone()
        flow.load_state_dict(state)
        assert list(state) == list(before)
        assert torch.equal(flow.core.noise_seed, seed)
        torch.testing.assert_close(flow.eval().inverse(x)[0], wanted)

    def test_a_model(self):
        def model(residual):
            flows = []
            for _ in range(3):
                flows += [residual(mlp(init_zeros=False, lipschitz_const=0.9)), nf.flows.ActNorm(2)]
            host = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), flows)
            return host.to(torch.zeros(()))

        old, new, x = model(nf.flows.Residual), model(flowplug_normflows.Residual), torch.randn(64, 2)
        old.log_prob(x)  # starts ActNorm
        new.load_state_dict(old.state_dict())
        # In two dimensions both are exact in eval mode.
        torch.testing.assert_close(new.eval().log_prob(x), old.eval().log_prob(x), atol=1e-5, rtol=1e-5)
        # What flowplug writes still loads, as does a model with both kinds.
        again = model(flowplug_normflows.Residual)
        again.load_state_dict(new.state_dict())
        assert torch.equal(again.eval().log_prob(x), new.log_prob(x))

    def test_a_state_that_does_not_fit_is_refused(self):
        state = nf.flows.Residual(mlp()).state_dict()
        flow = flowplug_normflows.Residual(nf.nets.LipschitzMLP([2, 4, 4, 2]))
        with pytest.raises(RuntimeError, match=r"Missing key.*core.g.net.5.weight"):
            flow.load_state_dict(state)
        del state["iresblock.nnet.net.1.weight"]
        with pytest.raises(RuntimeError, match=r"Missing key.*core.g.net.1.weight"):
            flowplug_normflows.Residual(mlp()).load_state_dict(state)

    def test_widths_are_no_shape_of_events(self):
        with pytest.raises(TypeError, match=r"looks like the widths .* Residual\(2, hidden_features=\(64, 64\)\)"):
            flowplug_normflows.Residual([2, 64, 64, 2])
        assert flowplug_normflows.Residual((2, 4, 2)).core.event_shape == (2, 4, 2)

    def test_images_of_another_size(self):
        first, second = flowplug_normflows.Residual(cnn()), flowplug_normflows.Residual(cnn())
        old = nf.flows.Residual(cnn())
        x = torch.randn(2, 2, 6, 6)
        old.iresblock.nnet(x)
        first.load_state_dict(old.state_dict())
        second.load_state_dict(first.state_dict())
        for twin in (second, copy.deepcopy(second)):
            torch.testing.assert_close(twin.eval().inverse(x), first.eval().inverse(x))
