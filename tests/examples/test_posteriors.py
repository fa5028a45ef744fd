"""examples/posteriors.py: tasks, estimators, the grid as users run it, and its tables."""

import importlib
import re
import sys

import pytest
import torch

import flowplug as fp
from common import gains
from common.densities import size
from common.processes import Processes
from common.report import read_lines
from flowplug.testing import z_test
from posteriors import report
from posteriors.models import DEFAULTS, MODELS, builder
from posteriors.tasks import TASKS, load
from posteriors.training import Training

posteriors = importlib.import_module("posteriors.__main__")

NEEDS_SBI = {"gaussian-mixture", "linear-gaussian"}
WITH_FLOWPLUG = [
    "zuko-nsf+residual+dense",
    "nflows-maf+residual",
    "nflows-nsf+dense",
    "zuko-nsf+marginal",
    "zuko-residual",
    "nflows-residual",
]
CONFIG = {
    "data": "two-moons-40", "seed": 0, "seconds": 600.0, "steps": 2, "parameters": 6000, "batch": 20, "lr": 2e-3,
    "weight_decay": 0.0, "warmup": 5, "clip": 100.0, "decay": 0.999, "checks": 2, "patience": 20, "amp": False,
}  # fmt: skip


@pytest.fixture
def sbi():
    """sbi, which the extra `test` installs; the oldest supported versions may have none that fits."""
    return pytest.importorskip("sbi", reason="the study of posteriors needs sbi: pip install 'flowplug[sbi]'")


def task(name, request):
    if name in NEEDS_SBI:
        request.getfixturevalue("sbi")
    return TASKS[name]()


@pytest.mark.parametrize("name", ["two-moons", "gaussian-mixture", "linear-gaussian"])
def test_exact_posteriors_are_calibrated(name, request):
    simulator = task(name, request)
    theta, x = simulator.pairs(400, 0)
    draws = torch.stack([simulator.exact(row, 49) for row in x])
    for one, others in ((theta, draws), (theta.prod(1, keepdim=True), draws.prod(2, keepdim=True))):
        ranks = ((others < one[:, None]).double().mean(1) * 49 + torch.rand(one.shape).double()) / 50
        moments = zip(ranks, (ranks - 0.5).square(), strict=True)
        z_test("ranks", moments, [torch.full_like(ranks[0], 1 / 2), torch.full_like(ranks[0], 1 / 12)])


@pytest.mark.parametrize("name", ["two-moons", "slcp"])
def test_pairs_are_of_their_seed_and_leave_the_generator_alone(name):
    simulator, before = TASKS[name](), torch.get_rng_state()
    one, same, other = (simulator.pairs(50, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_slcp_has_the_mean_and_covariance_of_its_parameters():
    theta = torch.tensor([0.5, -1.0, 1.5, -0.8, 0.6])
    points = TASKS["slcp"]().simulate(theta.expand(5000, 5)).reshape(-1, 2).double() - theta[:2]
    first, second, correlation = float(theta[2] ** 2), float(theta[3] ** 2), float(theta[4].tanh())
    moments = zip(points, points.square(), points.prod(1), strict=True)
    truth = [[0.0, 0.0], [first**2, second**2], correlation * first * second]
    z_test("points", moments, [torch.tensor(part, dtype=points.dtype) for part in truth])


@pytest.mark.usefixtures("sbi")
def test_models_of_a_seed_see_the_same_simulations(tmp_path):
    problem = load("two-moons", 40, 0, 20, torch.device("cpu"))

    def run(model, seed):
        return Training({**CONFIG, "model": model, "seed": seed}, problem, Processes("cpu"), tmp_path)

    one, other, third = run("zuko-nsf", 0), run("nflows-nsf+residual+dense", 0), run("zuko-nsf", 1)
    for part, same, different in zip(one.fitted, other.fitted, third.fitted, strict=True):
        assert len(part) == one.rows == 36
        assert torch.equal(part, same)
        assert not torch.equal(part, different)
    assert len(one.validated[0]) == 4


@pytest.mark.usefixtures("sbi")
@pytest.mark.parametrize("model", WITH_FLOWPLUG)
@pytest.mark.filterwarnings("ignore:Maximum number of epochs")
def test_an_estimator_is_one_that_npe_trains_and_samples(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where NPE writes its logs
    simulator = TASKS["two-moons"]()
    theta, x = simulator.pairs(200, 0)
    npe = importlib.import_module("sbi.inference").NPE
    inference = npe(simulator.prior, density_estimator=builder(model, 6000), show_progress_bars=False)
    estimator = inference.append_simulations(theta, x).train(max_num_epochs=2, training_batch_size=50)
    draws = inference.build_posterior(estimator).sample((20,), x=x[0], show_progress_bars=False)
    assert draws.shape == (20, 2)
    assert (draws.abs() <= 1).all()
    estimator.zero_grad()
    estimator.loss(theta, x).sum().backward()
    parts = [part for part in estimator.modules() if isinstance(part, fp.Transform)]
    assert parts
    assert all(parameter.grad is not None for part in parts for parameter in part.parameters())


@pytest.mark.usefixtures("sbi")
@pytest.mark.parametrize("model", WITH_FLOWPLUG)
def test_an_estimator_has_started_before_npe_tries_it_on_two_rows(model):
    theta, x = TASKS["two-moons"]().pairs(200, 0)
    parts = builder(model, 6000)(theta, x).modules()
    starting = [part for part in parts if isinstance(part, fp.Whitening | fp.ActNorm | fp.MarginalGaussianization)]
    assert starting
    assert all(part.initialized for part in starting)


@pytest.mark.usefixtures("sbi")
@pytest.mark.parametrize("model", MODELS)
def test_models_have_about_as_many_parameters(model):
    theta, x = TASKS["slcp"]().pairs(200, 0)
    assert 0.85 * 30_000 < size(builder(model, 30_000)(theta, x)) <= 30_000


@pytest.mark.usefixtures("sbi")
@pytest.mark.slow
def test_the_grid_is_run_and_reported(tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--tasks", "two-moons", "slcp", "--simulations", "50", "--steps", "4", "--parameters", "6000"]
    posteriors.main([*options, "--observations", "2", "--draws", "20", "--seeds", "0", "1", "--out", str(out)])
    lines = read_lines(out / "results.jsonl")
    assert [(line["config"]["data"], line["config"]["seed"], line["config"]["model"]) for line in lines] == [
        (data, seed, model) for data in ("two-moons-50", "slcp-50") for seed in (0, 1) for model in DEFAULTS
    ]
    for line in lines:
        saved = torch.load(out / "{data}-{model}-{seed}.values.pt".format(**line["config"]), weights_only=True)
        assert float(saved["values"].mean()) == pytest.approx(line["test_log_q"], abs=1e-5)
        assert len(saved["values"]) == 10_000
        assert len(line["c2st"]) == (2 if line["config"]["data"] == "two-moons-50" else 0)
        assert all(0 <= score <= 1 for score in line["c2st"])
        assert line["sampling_ms"] > 0
    written = {path.name for path in out.iterdir() if path.suffix != ".pt"}
    assert written == {"gains.png", "results.jsonl", "rows.jsonl", "summary.md", "table.md"}
    assert (out / "summary.md").read_text() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "moons"], "--tasks must be of two-moons, .*; got moons"),
        (["--models", "maf"], "--models must be of zuko-nsf, .*; got maf"),
        (["--simulations", "10"], "--simulations must be at least 20; got 10"),
        (["--observations", "-1"], "--observations must not be negative; got -1"),
        (["--draws", "5"], "--draws must be at least 20; got 5"),
        (["--steps", "5", "--seconds", "5"], "--steps is not allowed with --seconds"),
    ],
)
def test_bad_options_are_refused(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as end:
        posteriors.main([*options, "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert re.fullmatch(f"error: .*{message}.*", capsys.readouterr().err.strip())
    assert not (tmp_path / "out").exists()


def test_without_sbi_a_line_says_what_to_install(tmp_path, capsys, monkeypatch):
    for name in ("sbi", "sbi.neural_nets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as end:
        posteriors.main(["--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert re.fullmatch(r"error: .*: pip install 'flowplug\[sbi\]'\n", capsys.readouterr().err)


def saved_line(out, model, seed, values, curve, scores):
    config = {"data": "t", "model": model, "seed": seed}
    torch.save({"config": config, "values": torch.tensor(values)}, out / f"t-{model}-{seed}.values.pt")
    best = max(value for _, _, value, _ in curve)
    return {"config": config, "steps": 10 + seed, "seconds": 2.0, "validation": best, "curve": curve, "c2st": scores}


class TestSummary:
    def lines(self, out):
        slow, fast = [[1.0, 5, -3.0, 0.0], [2.0, 10, -1.0, 0.0]], [[1.0, 5, -1.0, 0.0], [2.0, 10, 0.0, 0.0]]
        return [
            saved_line(out, "zuko-nsf", 0, [0.0, 2.0], slow, [0.8, 0.9]),
            saved_line(out, "zuko-nsf+dense", 0, [1.0, 4.0], fast, [0.6, 0.6]),
            saved_line(out, "zuko-nsf", 1, [0.0, 2.0], fast, [0.7, 0.8]),
            saved_line(out, "zuko-nsf+dense", 1, [1.0, 2.0], slow, [0.6, 0.7]),
        ]

    def test_gains_are_on_the_same_pairs_and_seeds(self, tmp_path):
        _, _, plain, mixed = report.summary(self.lines(tmp_path), tmp_path).splitlines()
        assert "| zuko-nsf | 0 1 | -0.500 | 1.000 ± 2.000 |  |  |" in plain
        cells = [cell.strip() for cell in mixed.split("|")]
        assert cells[2] == "**zuko-nsf+dense**"
        assert cells[6].startswith("+1.000 ± ")  # the mean of 1, 2, 1 and 0
        assert cells[7] == "+1.50 +0.50"
        assert cells[8].startswith("0.625 ± ")
        assert cells[9].startswith("-0.175 ± ")

    def test_it_says_when_a_mixture_is_as_good_as_the_plain_flow_gets(self, tmp_path):
        lines = self.lines(tmp_path)
        rows = report.summary(lines, tmp_path).splitlines()
        assert rows[-1].endswith("| 1.0 (1 of 2) |")
        assert rows[-2].endswith("|  |")

    def test_a_picture_shows_the_gains(self, tmp_path, monkeypatch):
        drawn = []
        monkeypatch.setattr(gains, "draw", lambda panels, path, title, label: drawn.append((panels, path.name)))
        (tmp_path / "summary.md").write_text(report.summary(self.lines(tmp_path), tmp_path))
        assert report.draw(tmp_path)
        ((panels, name),) = drawn
        ((plain, flow, (mean, _), chosen),) = panels["t"]
        assert (name, plain, flow, mean, chosen) == ("gains.png", "zuko-nsf", "+dense", 1.0, True)

    def test_failed_runs_and_missing_scores_have_cells(self, tmp_path):
        lines = [
            {"config": {"data": "t", "model": "zuko-nsf", "seed": 0}, "failed": "why"},
            self.lines(tmp_path)[1] | {"c2st": [None, 0.5], "test_log_q": 1.0, "two_standard_errors": None,
                                      "parameters": 5, "steps_per_second": 1.0, "sampling_ms": None},
        ]  # fmt: skip
        text = report.STUDY.report(lines, tmp_path)
        assert len({row.count("|") for row in report.table(lines).splitlines()}) == 1
        assert "| why |" in text
        assert "| 1.000 ± - | - |" in text
