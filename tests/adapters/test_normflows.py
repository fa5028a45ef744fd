"""Inside normflows: the workflows of its README and notebooks, and its shipped FlowTest."""

import copy
import warnings

import normflows as nf
import pytest
import torch
from normflows.flows.flow_test import FlowTest
from torch import nn

import flowplug as fp
import flowplug_normflows
from helpers import integral


def train(model, loss, steps=5):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        assert value.isfinite()
        value.backward()
        optimizer.step()


class TestWorkflows:
    def test_readme_real_nvp(self):
        base, target = nf.distributions.DiagGaussian(2), nf.distributions.TwoMoons()
        flows = []
        for _ in range(2):
            flows.append(nf.flows.AffineCouplingBlock(nf.nets.MLP([1, 8, 8, 2], init_zeros=True)))
            flows.append(nf.flows.Permute(2, mode="swap"))
            flows.append(flowplug_normflows.Residual(fp.LipschitzMLP(2)))
        model, x = nf.NormalizingFlow(base, flows, target), torch.randn(64, 2)
        train(model, lambda: model.forward_kld(x))
        assert all(p.grad is not None for p in model.parameters())
        train(model, lambda: model.reverse_kld(64))
        train(model, lambda: model.reverse_kld(64, score_fn=False))
        model.p = nf.distributions.DiagGaussian(2)  # 0 log 0 where the density of two moons is none
        train(model, lambda: model.reverse_alpha_div(64, dreg=True))
        assert model.sample(7)[0].shape == (7, 2)
        assert model.log_prob(x).shape == (64,)

    def test_residual_notebook_with_one_import_changed(self):
        flows = []
        for _ in range(2):
            net = nf.nets.LipschitzMLP([2, 16, 16, 2], init_zeros=True, lipschitz_const=0.9)
            with pytest.warns(fp.UnboundedBranchWarning):
                flows += [flowplug_normflows.Residual(net, reduce_memory=True)]
            flows += [nf.flows.ActNorm(2)]
        model, x = nf.NormalizingFlow(nf.distributions.DiagGaussian(2, trainable=False), flows), torch.randn(64, 2)
        model.to(x.device)  # normflows makes weights on the CPU
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(5):
            optimizer.zero_grad()
            model.forward_kld(x).backward()
            optimizer.step()
            nf.utils.update_lipschitz(model, 50)
        z, log_det = model.inverse_and_log_det(x)
        back, log_det_back = model.forward_and_log_det(z)
        torch.testing.assert_close(back, x, atol=1e-5, rtol=0)
        torch.testing.assert_close(log_det + log_det_back, torch.zeros_like(log_det), atol=1e-4, rtol=0)

    def test_conditional_flow_notebook(self):
        class Target(nn.Module):
            def log_prob(self, z, context):
                return -((z - context[:, :2]) ** 2).sum(1)

        flows = []
        for _ in range(2):
            flows += [nf.flows.AutoregressiveRationalQuadraticSpline(2, 1, 8, num_context_channels=4)]
            flows += [flowplug_normflows.Residual(2, context_features=4)]
            flows += [nf.flows.LULinearPermute(2)]
        base = nf.distributions.DiagGaussian(2, trainable=False)
        model = nf.ConditionalNormalizingFlow(base, flows, Target())
        x, context = torch.randn(64, 2), torch.randn(64, 4)
        train(model, lambda: model.forward_kld(x, context))
        train(model, lambda: model.reverse_kld(64, context))
        train(model, lambda: model.reverse_kld(64, context, score_fn=False))
        assert model.log_prob(x, context).shape == (64,)

    def test_glow_notebook(self):
        levels, channels, side = 2, 3, 8
        q0, merges, flows = [], [], []
        for i in range(levels):
            c, s = channels * 2 ** (levels + 1 - i), side // 2 ** (levels - i)
            level = [nf.flows.GlowBlock(c, 8, split_mode="channel", scale=True)]
            level += [flowplug_normflows.Residual((c, s, s))]
            level += [nf.flows.Squeeze()]
            flows += [level]
            if i > 0:
                merges += [nf.flows.Merge()]
                latent = (channels * 2 ** (levels - i), side // 2 ** (levels - i), side // 2 ** (levels - i))
            else:
                latent = (channels * 2 ** (levels + 1), side // 2**levels, side // 2**levels)
            q0 += [nf.distributions.DiagGaussian(latent)]
        model, x = nf.MultiscaleFlow(q0, flows, merges, class_cond=False), torch.randn(4, channels, side, side)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        (-model.log_prob(x, None).mean()).backward()
        optimizer.step()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        assert model.sample(2)[0].shape == (2, channels, side, side)


class TestHostsOwnChecks(FlowTest):
    """normflows' own FlowTest, at its own tolerances."""

    def test_residual(self):
        for reverse in (True, False):
            for features in (1, 2, 5):
                net = fp.LipschitzMLP(features, (16,))
                flow = flowplug_normflows.Residual(net, reverse=reverse, brute_force=True)
                self.checkForwardInverse(flow, torch.randn(3, features))

    def test_context(self):
        flow = flowplug_normflows.Residual(2, context_features=4, brute_force=True)
        self.checkForwardInverse(flow, torch.randn(3, 2), torch.randn(3, 4))

    def test_images(self):
        flow = flowplug_normflows.Residual((2, 4, 4), brute_force=True)
        self.checkForwardInverse(flow, torch.randn(3, 2, 4, 4))

    def test_actnorm_inside_reverse_and_composite(self):
        flow = nf.flows.Composite([flowplug_normflows.NormflowsFlow(fp.ActNorm(2)), flowplug_normflows.Residual(2)])
        x = torch.randn(3, 2)
        flow.inverse(x)
        z, _ = nf.flows.Reverse(flow)(x)
        self.assertClose(nf.flows.Reverse(flow).inverse(z)[0], x, atol=1e-5, rtol=0)


class TestArguments:
    def estimator(self, **keywords):
        return flowplug_normflows.Residual(fp.LipschitzMLP(2), **keywords).core.logdet

    def test_they_name_the_estimator(self):
        assert self.estimator() is None
        assert self.estimator(brute_force=True) == self.estimator(exact_trace=True) == fp.ExactLogDet()
        assert self.estimator(n_power_series=7) == fp.PowerSeries(terms=fp.Truncated(7))
        poisson = fp.PowerSeries(terms=fp.Roulette(fp.Poisson(3.0), exact=4), probes=fp.Rademacher(samples=2))
        with pytest.warns(fp.InfiniteVarianceWarning):
            assert self.estimator(n_dist="poisson", lamb=3.0, n_exact_terms=4, n_samples=2) == poisson
        autograd = fp.PowerSeries(terms=fp.Roulette(fp.Geometric(0.5), exact=3), gradient=fp.Autograd())
        with pytest.warns(fp.InfiniteVarianceWarning):
            assert self.estimator(reduce_memory=False) == autograd

    def test_bad_ones_are_refused(self):
        with pytest.raises(ValueError, match="n_dist must be one of"):
            self.estimator(n_dist="rademcher")
        with pytest.raises(fp.ContextError, match="context_features=4, but net takes a context of width 0"):
            self.estimator(context_features=4)

    def test_a_log_det_replaces_them(self):
        assert self.estimator(logdet=fp.Krylov()) == fp.Krylov()
        with pytest.raises(TypeError, match=r"geom_p, n_samples beside logdet=ExactLogDet\(\), which replaces"):
            self.estimator(logdet=fp.ExactLogDet(), geom_p=0.3, n_samples=2)
        with pytest.raises(TypeError, match="Residual got brute_force beside logdet"):
            self.estimator(logdet=fp.Krylov(), brute_force=True)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("hidden_features", (8,)), ("bound", 0.9), ("norm", fp.Gram()), ("activation", fp.Sine)],
    )
    def test_a_network_that_is_built_takes_no_options(self, name, value):
        for net in (fp.LipschitzMLP(2), nf.nets.LipschitzMLP([2, 4, 2], lipschitz_const=0.9)):
            with pytest.raises(TypeError, match=f"Residual got {name} beside net, a LipschitzMLP that is built alr"):
                flowplug_normflows.Residual(net, **{name: value})

    @pytest.mark.parametrize(
        ("net", "message"),
        [
            (lambda: fp.LipschitzMLP, r"Residual\(net=\.\.\.\) must be .*; got the class LipschitzMLP itself: call it"),
            (
                lambda: nf.flows.Residual(nf.nets.LipschitzMLP([2, 4, 2])),
                r"got Residual of normflows: pass flow\.iresbl",
            ),
            (lambda: nf.flows.Permute(2), r"must be a network g, .*; got Permute, which is a flow already"),
            (lambda: fp.ResidualTransform(fp.LipschitzMLP(2)), "got ResidualTransform, which is a flow already"),
        ],
    )
    def test_what_is_no_network_is_refused_by_name(self, net, message):
        with pytest.raises(TypeError, match=message):
            flowplug_normflows.Residual(net())

    def test_a_context_is_a_width(self):
        with pytest.raises(TypeError, match=r"Residual\(context_features=\.\.\.\) must be an integer; got 'a'"):
            flowplug_normflows.Residual(fp.LipschitzMLP(2), context_features="a")

    def test_strategies_go_with_a_network_that_is_built(self):
        chosen = {"eval_logdet": fp.Krylov(), "solver": fp.FixedPoint(max_steps=50)}
        core = flowplug_normflows.Residual(fp.LipschitzMLP(2), n_power_series=7, **chosen).core
        assert (core.eval_logdet, core.solver) == (fp.Krylov(), fp.FixedPoint(max_steps=50))
        assert core.logdet == fp.PowerSeries(terms=fp.Truncated(7))

    def test_positional_order_is_that_of_normflows(self):
        with pytest.warns(fp.InfiniteVarianceWarning):
            flow = flowplug_normflows.Residual(fp.LipschitzMLP(2), False, False, 0.4, 2.0, None, False, False, 2)  # noqa: FBT003
        assert flow.reverse is False
        assert flow.core.logdet.probes == fp.Rademacher(samples=2)


class TestResidualFlow:
    def test_is_normflows_own_class(self):
        assert type(flowplug_normflows.ResidualFlow(2)) is nf.NormalizingFlow
        assert type(flowplug_normflows.ResidualFlow(2, context_features=1)) is nf.ConditionalNormalizingFlow

    def test_without_context(self):
        model = flowplug_normflows.ResidualFlow(2, 2, (8,), bound=0.7, p=nf.distributions.TwoMoons())
        x = 1 + torch.randn(64, 2)
        train(model, lambda: model.forward_kld(x))
        assert all(p.grad is not None for p in model.parameters())
        train(model, lambda: model.reverse_kld(64))
        train(model, lambda: model.reverse_kld(64, score_fn=False))
        model.p = nf.distributions.DiagGaussian(2)  # 0 log 0 where the density of two moons is none
        train(model, lambda: model.reverse_alpha_div(64, dreg=True))
        samples, log_prob = model.sample(7)
        torch.testing.assert_close(model.log_prob(samples), log_prob, atol=1e-4, rtol=0)

    def test_with_context(self):
        class Target(nn.Module):
            def log_prob(self, z, context):
                return -((z - context[:, :2]) ** 2).sum(1)

        model = flowplug_normflows.ResidualFlow(2, 2, (8,), context_features=4, p=Target())
        x, context = torch.randn(64, 2), torch.randn(64, 4)
        train(model, lambda: model.forward_kld(x, context))
        assert all(p.grad is not None for p in model.parameters())
        train(model, lambda: model.reverse_kld(64, context))
        train(model, lambda: model.reverse_kld(64, context, score_fn=False))
        samples, log_prob = model.sample(64, context)
        torch.testing.assert_close(model.log_prob(samples, context), log_prob, atol=1e-4, rtol=0)
        with pytest.raises(fp.ContextError, match="pass a context"):
            model.log_prob(x)

    def test_base_distribution(self):
        assert not list(flowplug_normflows.ResidualFlow(2).q0.parameters())
        q0 = nf.distributions.GaussianMixture(3, 2)  # takes no context
        model, x = flowplug_normflows.ResidualFlow(2, 1, q0=q0), torch.randn(8, 2)
        q0.to(x)  # in single precision from NumPy
        assert model.q0 is q0
        assert model.log_prob(x).shape == (8,)

    def test_normalises(self):
        model = flowplug_normflows.ResidualFlow(2, 2, (8,), bound=0.7).double()
        model.log_prob(0.5 * torch.randn(200, 2, dtype=torch.float64))
        assert abs(integral(model.eval().log_prob, side=801, reach=10.0) - 1) < 1e-4

    def test_saving_and_copying(self, tmp_path):
        model, x = flowplug_normflows.ResidualFlow(2, 2, (8,)), torch.randn(64, 2)
        wanted = model.log_prob(x)
        torch.save(model, tmp_path / "flow.pt")
        assert torch.equal(torch.load(tmp_path / "flow.pt", weights_only=False).log_prob(x), wanted)
        assert torch.equal(copy.deepcopy(model).log_prob(x), wanted)
        fresh = flowplug_normflows.ResidualFlow(2, 2, (8,))
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(fresh.log_prob(x), wanted)


def mixed_flow():
    flows = [
        nf.flows.CoupledRationalQuadraticSpline(2, 1, 8),
        flowplug_normflows.Residual(2),
        nf.flows.LULinearPermute(2),
        nf.flows.MaskedAffineAutoregressive(2, 8),
        flowplug_normflows.Dense(2, activation=fp.SmoothLeakyReLU(0.7)),
        flowplug_normflows.Dense(2, activation=None, reverse=False),
        flowplug_normflows.Residual(2, reverse=False),
        flowplug_normflows.NormflowsFlow(fp.ActNorm(2)),
    ]
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(2, trainable=False), flows)


@pytest.mark.slow
def test_mixed_flow_normalises():
    model = mixed_flow().double()
    model.log_prob(0.5 * torch.randn(200, 2, dtype=torch.float64))
    assert abs(integral(model.eval().log_prob) - 1) < 1e-4


def test_gradcheck_of_a_mixed_flow():
    model = mixed_flow().double().eval()
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model.log_prob, (x,))


def test_saving_and_copying(tmp_path):
    model, x = mixed_flow(), torch.randn(64, 2)
    wanted = model.log_prob(x)
    model.save(tmp_path / "flow.pt")
    fresh = mixed_flow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        fresh.load(tmp_path / "flow.pt")
    assert torch.equal(fresh.log_prob(x), wanted)
    assert torch.equal(copy.deepcopy(model).log_prob(x), wanted)
