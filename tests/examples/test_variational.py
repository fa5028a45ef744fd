"""examples/variational.py: targets, measures, flows, the grid as users run it, and its tables."""

import importlib
import math
import re
from pathlib import Path

import pytest
import torch

from common import gains
from common.densities import size
from common.processes import Processes
from common.report import read_lines
from flowplug.testing import z_test
from variational import report
from variational.measures import CHAINS, effective, evidence, exact_share, measured, metropolis, share
from variational.models import MODELS, PLAIN, make
from variational.targets import TARGETS, mixture, ring
from variational.training import Training

variational = importlib.import_module("variational.__main__")

CONFIG = {
    "data": "rings", "seed": 0, "seconds": 600.0, "steps": 2, "parameters": 4000, "batch": 20, "lr": 2e-3,
    "weight_decay": 0.0, "warmup": 5, "clip": 100.0, "decay": 0.999, "checks": 2, "patience": 20, "amp": False,
}  # fmt: skip
SMALL = ["--draws", "200", "--exact", "50", "--parameters", "4000"]


def z_test_rows(name, values, truth):
    """Of the mean of rows, some hundreds of them at a time."""
    values = values.double()
    truth = torch.as_tensor(truth, dtype=values.dtype).expand(values.shape[1:])
    z_test(name, ((part.mean(0),) for part in values.split(len(values) // 200)), [truth])


def wider(x):
    """Draws of a Student's t that is wider than the rows, and their log-densities."""
    base = torch.distributions.StudentT(torch.full((x.shape[1],), 3.0, dtype=x.dtype))
    centre, scale = x.mean(0), 1.5 * x.std(0)
    draws = centre + scale * base.sample((400_000,))
    return draws, base.log_prob((draws - centre) / scale).sum(1) - scale.log().sum()


@pytest.mark.parametrize("name", ["rings", "mixture", "rosenbrock"])
def test_a_normaliser_is_what_weights_of_wide_draws_have(name):
    target = TARGETS[name]()
    draws, log_q = wider(target.exact(20_000))
    z_test_rows(name, (target.log_prob(draws) - log_q - target.log_z).exp(), 1.0)


@pytest.mark.parametrize("name", ["rings", "mixture"])
def test_a_normaliser_is_what_quadrature_has(name):
    target, side = TARGETS[name](), torch.linspace(-7, 7, 1401, dtype=torch.float64)
    total = target.log_prob(torch.cartesian_prod(side, side)).exp().sum() * float(side[1] - side[0]) ** 2
    assert math.log(float(total)) == pytest.approx(target.log_z, abs=1e-6)


def test_a_funnel_is_normalised_given_its_neck():
    funnel, side = TARGETS["funnel"](), torch.linspace(-40, 40, 8001, dtype=torch.float64)
    x = torch.zeros(len(side), 10, dtype=torch.float64)
    x[:, 0] = side
    others = 9 / 2 * (math.log(2 * math.pi) + side)  # the integral over the others, whose exponent is 0 at 0
    total = (funnel.log_prob(x) + others).exp().sum() * float(side[1] - side[0])
    assert math.log(float(total)) == pytest.approx(funnel.log_z, abs=1e-6)


@pytest.mark.parametrize("name", TARGETS)
def test_exact_draws_are_of_the_target(name):
    """By Stein's identity: the mean of s(x) h(x) + h'(x) is 0, with the score s, for any h; here tanh of a feature."""
    target = TARGETS[name]()
    x = target.exact(100_000).double().requires_grad_()
    (score,) = torch.autograd.grad(target.log_prob(x).sum(), x)
    x = x.detach()
    z_test_rows(name, score * x.tanh() + 1 - x.tanh().square(), 0.0)


def test_radii_of_rings_are_drawn_by_their_integral():
    r = TARGETS["rings"]().exact(50_000).norm(dim=1)
    total = sum(ring(radius, 0.2) for radius in (1.0, 2.0, 3.0))
    z_test_rows("inner", r < 1.5, ring(1.0, 0.2) / total)


def test_evidence_and_shares_are_those_of_known_weights():
    x = torch.randn(100_000).double()
    log_w = -x.square() / 2  # against a standard normal: E w = 1 / sqrt 2, E w^2 = 1 / sqrt 3
    found = evidence(log_w + 700)
    assert abs(found.log_z - 700 + math.log(2) / 2) < 4 * found.error < 0.01
    assert share(log_w + 700) == pytest.approx(math.sqrt(3) / 2, rel=0.01)
    exact = x / math.sqrt(2)  # of the normal whose variance is 1 / 2
    assert exact_share(-exact.square() / 2 + math.log(2) / 2) == pytest.approx(math.sqrt(3) / 2, rel=0.01)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, -0.4])
def test_effective_samples_are_those_of_an_autoregression(rho):
    noise = torch.randn(4000, 20).double() * math.sqrt(1 - rho**2)
    states = [torch.randn(20).double()]
    for row in noise:
        states.append(rho * states[-1] + row)
    values = torch.stack(states)
    assert effective(values) == pytest.approx(values.numel() * (1 - rho) / (1 + rho), rel=0.08)


def test_chains_that_disagree_have_few_effective_samples():
    values = torch.randn(500, 10)
    values[:, 0] += 10
    assert effective(values) < 20
    assert math.isnan(effective(torch.ones(50, 4)))


def test_metropolis_has_the_target_for_its_law():
    x = 2 * torch.randn(400_000, 1)
    log_w = -x[:, 0].square() / 2 + x[:, 0].square() / 8
    chains = metropolis(x, log_w, 4000)
    assert chains.x.shape == (100, 4000, 1)
    assert torch.equal(chains.log_w, -3 / 8 * chains.x[..., 0].square())
    z_test_rows("variance", chains.x[50:].square().mean(0), 1.0)
    assert chains.accepted == pytest.approx(4 / math.pi * math.atan(0.5), abs=0.01)  # of two normals, 1 to 2


def test_metropolis_with_the_target_itself_accepts_all():
    chains = metropolis(torch.randn(1000, 2), torch.zeros(1000), 10)
    assert chains.accepted == 1


@pytest.mark.parametrize("model", MODELS)
def test_a_flow_draws_without_a_solver_with_the_density_that_it_has(model, monkeypatch):
    target = TARGETS["rosenbrock"]()
    sampler = make(model, target, 4000)
    assert 0.8 * 4000 < size(sampler) <= 4000
    z = torch.randn(50, target.features)
    sampler.start(z)
    for parameter in sampler.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    sampler.eval()
    x, log_w = sampler.weighted(z)
    torch.testing.assert_close(sampler.log_prob(x), target.log_prob(x) - log_w, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr("flowplug.Anderson.__call__", None)  # what draws do not need
    sampler.train()(z).mean().backward()
    assert all(parameter.grad is not None for parameter in sampler.parameters() if parameter.requires_grad)


def test_models_are_compared_with_what_there_is():
    assert set(PLAIN) | set(PLAIN.values()) == set(MODELS)


def test_runs_of_a_seed_see_the_same_noise(tmp_path):
    def run(model, seed):
        return Training({**CONFIG, "model": model, "seed": seed}, TARGETS["rings"](), Processes("cpu"), tmp_path)

    one, same, other = run("realnvp", 0), run("residual", 0), run("realnvp", 1)
    assert torch.equal(one.validated[0], other.validated[0])
    (first,), (second,), (third,) = (training.batch(20) for training in (one, same, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_a_lost_mode_shows_in_log_z_and_at_exact_draws():
    target = mixture(modes=5, radius=6.0)
    sampler = make("realnvp", target, 4000)
    sampler._to_data = lambda _, z: (mode + 0.5 * z, torch.full((len(z),), 2 * math.log(0.5)))
    sampler._to_latent = lambda _, x: ((x - mode) / 0.5, torch.full((len(x),), -2 * math.log(0.5)))
    mode = torch.tensor([6.0, 0.0])
    before = torch.get_rng_state()
    line = measured(sampler, target, 20 * CHAINS, 1000, 0)
    assert torch.equal(before, torch.get_rng_state())
    assert line["ess"] > 0.9
    assert line["acceptance"] > 0.9
    assert line["log_z_error"] == pytest.approx(-math.log(5), abs=0.1)
    assert line["exact_ess"] < 0.01


@pytest.mark.slow
def test_the_grid_is_run_resumed_and_reported(tmp_path, capsys):
    out = tmp_path / "out"
    options = [*SMALL, "--targets", "rings", "funnel", "--models", "realnvp", "realnvp+residual", "--steps", "3"]
    variational.main([*options, "--seeds", "0", "--out", str(out)])
    first = read_lines(out / "results.jsonl")
    variational.main([*options, "--seeds", "0", "1", "--resume", "--out", str(out)])
    lines = read_lines(out / "results.jsonl")
    assert len(lines) == 8
    assert [line for line in lines if line["config"]["seed"] == 0] == first
    assert all(line["steps"] == 3 and line["ess_per_second"] > 0 and 0 < line["acceptance"] <= 1 for line in lines)
    assert {path.name for path in out.iterdir()} == {"gains.png", "results.jsonl", "summary.md", "table.md"}
    assert (out / "summary.md").read_text() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--targets", "banana"], "--targets must be of funnel, .*; got banana"),
        (["--models", "maf"], "--models must be of realnvp, .*; got maf"),
        (["--draws", "100"], "--draws must be at least 200; got 100"),
        (["--draws", "250"], "--draws must be a multiple of the 100 chains; got 250"),
        (["--exact", "1"], "--exact must be at least 2; got 1"),
        (["--steps", "5", "--seconds", "5"], "--steps is not allowed with --seconds"),
    ],
)
def test_bad_options_are_refused(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as end:
        variational.main([*options, "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert re.fullmatch(f"error: .*{message}.*", capsys.readouterr().err.strip())
    assert not (tmp_path / "out").exists()


def line_of(model, seed, **changes):
    values = {key: 1.0 for key, _ in report.FORMS.values()} | {"parameters": 5, "steps": 3}
    errors = {"log_z_error": 0.01, "log_z_standard_error": 0.02}
    return {"config": {"data": "t", "model": model, "seed": seed}, **values, **errors, **changes}


class TestSummary:
    def lines(self):
        return [
            line_of("realnvp", 0, ess_per_second=100.0),
            line_of("realnvp+residual", 0, ess_per_second=200.0, log_z_error=-0.5),
            line_of("realnvp", 1, ess_per_second=100.0),
            line_of("realnvp+residual", 1, ess_per_second=800.0),
        ]

    def test_gains_are_ratios_of_the_same_seeds(self):
        _, _, plain, mixed = report.summary(self.lines(), Path()).splitlines()
        assert "| realnvp | 0 1 | 100 |  |  |  |  | +0.0100 ± 0.0283 | +0.010 +0.010 |" in plain
        assert "| 500 | 4 (1 to 16) | +2.00 ± 2.00 | 1 (1 to 1) | 1 (1" in mixed
        assert "| -0.2450 ± 0.0283 | -0.500 +0.010 |" in mixed

    def test_one_seed_has_no_error(self):
        assert "| 2 | +1.00 ± nan |" in report.summary(self.lines()[:2], Path())

    def test_a_picture_shows_the_gains(self, tmp_path, monkeypatch):
        drawn = []
        monkeypatch.setattr(gains, "draw", lambda panels, path, title, label: drawn.append((panels, path.name, label)))
        (tmp_path / "summary.md").write_text(report.summary(self.lines(), Path()))
        assert report.draw(tmp_path)
        ((panels, name, label),) = drawn
        ((plain, flow, estimate, chosen),) = panels["t"]
        assert (name, plain, flow, estimate, chosen) == ("gains.png", "realnvp", "+residual", (2.0, 2.0), False)
        assert "effective draws" in label

    def test_failed_runs_and_missing_values_have_cells(self, tmp_path):
        lines = [
            {"config": {"data": "t", "model": "realnvp", "seed": 0}, "failed": "why"},
            line_of("realnvp+residual", 0, forward_kl=None, ess_per_second=None, log_z_error=None),
        ]
        text = report.STUDY.report(lines, tmp_path)
        assert len({row.count("|") for row in report.table(lines).splitlines()}) == 1
        assert "| why |" in text
        assert "| - ± 0.0200 |" in text
