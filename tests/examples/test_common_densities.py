"""examples/common: densities of every host, and a trial of one on a table."""

import normflows as nf
import pytest
import torch
import zuko
from nflows import distributions, flows, transforms
from torch import nn

import flowplug as fp
from common.densities import log_likelihoods, nearest, of_nflows, of_normflows, of_transform, of_zuko, size
from common.tables import Table
from common.training import Options
from common.trial import outcome, table, trial


def densities():
    layers = [transforms.MaskedAffineAutoregressiveTransform(features=3, hidden_features=8)]
    base = nf.distributions.DiagGaussian(3, trainable=False)
    block = nf.flows.MaskedAffineAutoregressive(3, 8)
    return {
        "nflows": of_nflows(flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([3]))),
        "normflows": of_normflows(nf.NormalizingFlow(base, [block])),
        "zuko": of_zuko(zuko.flows.MAF(3, transforms=1, hidden_features=(8,))),
        "core": of_transform(fp.ResidualStack(3, 2, (8,)), 3),
    }


@pytest.mark.parametrize("host", ["nflows", "normflows", "zuko", "core"])
def test_are_normalised_sample_and_invert(host):
    density = densities()[host]
    x = torch.randn(300, 3)
    density.start(x)
    values = log_likelihoods(density, x[:20])
    assert values.shape == (20,)
    assert density.training
    with torch.no_grad():
        torch.testing.assert_close(density.eval()(x[:20]), values)
    judged, samples = outcome(density, values, x, 7)
    assert samples.shape == (7, 3)
    assert judged["test_log_likelihood"] == pytest.approx(float(values.mean()))
    assert judged["two_standard_errors"] == pytest.approx(2 * float(values.std()) / 20**0.5)
    assert judged["parameters"] == size(density)
    assert judged["round_trip_error"] < 1e-3
    assert judged["sampling_ms"] > 0


def test_a_transform_stands_on_a_standard_normal():
    density = of_transform(fp.ActNorm(2), 2)
    x = torch.randn(50, 2)
    density.start(3 * x + 1)
    latent = (3 * x + 1 - (3 * x + 1).mean(0)) / (3 * x).std(0, correction=0)
    normal = torch.distributions.Normal(0.0, 1.0)
    wanted = normal.log_prob(latent).sum(1) - (3 * x).std(0, correction=0).log().sum()
    torch.testing.assert_close(density(3 * x + 1).detach(), wanted, atol=1e-3, rtol=1e-2)


def test_what_cannot_be_inverted_is_none():
    density = of_zuko(zuko.flows.MAF(2, transforms=1))

    def overflow(flow, x):
        raise fp.NonFiniteError("overflow")

    density._round_trip = overflow
    judged, samples = outcome(density, torch.tensor([1.0, float("inf")]), torch.randn(4, 2), 4)
    assert len(samples) == 0
    assert judged["sampling_ms"] is judged["round_trip_error"] is judged["test_log_likelihood"] is None


def test_samples_that_are_not_finite_have_no_time():
    density = of_zuko(zuko.flows.MAF(2, transforms=1))
    density._sample = lambda flow, rows: torch.full((rows, 2), torch.nan)
    judged, _ = outcome(density, torch.ones(2), torch.randn(4, 2), 4)
    assert judged["sampling_ms"] is None
    assert judged["round_trip_error"] < 1e-3


def test_a_trial_tests_the_best_state():
    rows = torch.randn(400, 2) * torch.tensor([3.0, 0.5]) + 1
    data = Table("t", rows[:200], rows[200:300], rows[300:])
    density = of_zuko(zuko.flows.MAF(2, transforms=1))
    line, samples = trial("a name", density, data, Options(steps=150, lr=0.05), offset=10.0)
    assert line["model"] == "a name"
    assert line["test_log_likelihood"] == pytest.approx(float(log_likelihoods(density, data.test).mean()) - 10)
    assert -14 < line["test_log_likelihood"] < -13
    assert samples.shape == (1000, 2)
    row = table([line]).splitlines()[2]
    assert row.startswith("| a name | -13.")
    assert row.count("|") == 7


def test_size_counts_what_is_trained():
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(requires_grad=False)
    assert size(layer) == 6


def test_the_nearest_width_is_not_above():
    assert nearest(lambda hidden: nn.Linear(10, hidden), 115).out_features == 10
