"""examples/uci/models.py: flows of equal size that train, copy and invert."""

import copy
import itertools

import normflows as nf
import pytest
import torch

import flowplug as fp
from common.densities import size
from uci import models


class TestModels:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["zuko-nsf+residual", "nflows-rqs", "normflows-realnvp+dense", "residual"])
    def test_all_have_as_many_parameters(self, name):
        assert 0.9 < size(models.make(name, 6, 20_000)) / 20_000 <= 1

    def test_a_dense_flow_is_as_deep_as_it_may(self):
        assert 0.9 < size(models.make("dense", 30, 20_000)) / 20_000 <= 1
        assert size(models.make("dense", 3, 20_000)) == 32 * 12

    @pytest.mark.slow
    def test_all_train_copy_and_invert(self):
        x = torch.randn(32, 5)
        for name in models.NAMES:
            density = models.make("dense", 5, 200) if name == "dense" else models.MODELS[name](5, 10)
            density.start(x)
            other = copy.deepcopy(density)
            (-density(x).mean()).backward()
            assert all(p.grad is not None for p in density.parameters() if p.requires_grad), name
            density.eval()
            other.eval()
            with torch.no_grad():
                before = other(x)
                for p in density.parameters():
                    p.add_(0.01)
                density.after_step()
                assert (density(x) - before).abs().max() > 0.01, name
                torch.testing.assert_close(other(x), before, atol=1e-3, rtol=0, msg=name)
                assert density.sample(4).shape == (4, 5), name
                torch.testing.assert_close(density.round_trip(x), x, atol=1e-2, rtol=0, msg=name)

    def test_normflows_bounds_hold_after_an_update(self):
        density = models.MODELS["normflows-residual"](5, 10)
        layers = [part for part in density.modules() if isinstance(part, nf.nets.lipschitz.InducedNormLinear)]
        for layer in layers:
            layer.weight.data.normal_()
        for _ in range(20):  # power iterations from a far start
            density.after_step()
        norms = [torch.linalg.matrix_norm(layer.compute_weight(update=False).detach(), 2) for layer in layers]
        assert len(norms) == 24
        assert max(norms) < 1

    @pytest.mark.parametrize("host", ["zuko-maf", "nflows-rqs", "normflows-realnvp"])
    def test_flows_with_dense_transforms_whiten_at_first(self, host):
        x = 5 + torch.randn(4000, 5) @ (torch.eye(5) + 0.2 * torch.randn(5, 5))
        density = models.MODELS[f"{host}+dense"](5, 10)
        seen = []
        for part in density.modules():
            if isinstance(part, fp.Whitening):
                part.register_forward_hook(lambda _, inputs, outputs: seen.append((inputs[0], outputs[0])))
        density.start(x)
        assert len(seen) == 3
        inputs, outputs = seen[0]
        assert torch.equal(inputs, x)
        torch.testing.assert_close(outputs.mT.cov(), torch.eye(5), atol=0.02, rtol=0)
        torch.testing.assert_close(outputs.mean(0), torch.zeros(5), atol=1e-3, rtol=0)

    @pytest.mark.parametrize(
        ("pattern", "residuals", "denses"), [("+residual", 2, 0), ("+dense", 0, 3), ("+residual+dense", 2, 2)]
    )
    @pytest.mark.parametrize("marginal", ["", models.MARGINAL])
    def test_mixed_flows_have_the_transforms_they_name(self, pattern, residuals, denses, marginal):
        for host in models.HOSTS:
            parts = list(models.MODELS[host + pattern + marginal](5, 10).modules())
            assert sum(isinstance(part, fp.MarginalGaussianization) for part in parts) == bool(marginal)
            assert sum(isinstance(part, fp.ResidualTransform) for part in parts) == residuals
            assert sum(isinstance(part, fp.DenseTransform) for part in parts) == denses

    @pytest.mark.parametrize("name", [*models.HOSTS, "residual", "zuko-maf+residual+dense"])
    def test_marginals_come_first(self, name):
        density, seen, x = models.MODELS[name + models.MARGINAL](5, 10), [], torch.randn(300, 5).exp()
        for part in density.modules():
            if isinstance(part, fp.MarginalGaussianization):
                part.register_forward_hook(lambda _, inputs, outputs: seen.append((inputs[0], outputs[0])))
        density.start(x)
        ((first, scores),) = seen
        assert torch.equal(first, x)
        torch.testing.assert_close(scores.std(0), torch.ones(5), atol=0.1, rtol=0)

    @pytest.mark.parametrize("pattern", ["", "+residual", "+dense", "+residual+dense"])
    def test_couplings_alternate(self, pattern):
        parts = models.MODELS["nflows-rqs" + pattern](5, 10).modules()
        masks = [part.transform_features.tolist() for part in parts if hasattr(part, "transform_features")]
        assert len(masks) >= 3
        assert all(sorted(one + other) == [0, 1, 2, 3, 4] for one, other in itertools.pairwise(masks))
