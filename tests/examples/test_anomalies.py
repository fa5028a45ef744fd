"""examples/anomalies.py: labelled tables, scores and their errors, the grid as users run it, and its tables."""

import doctest
import importlib
import math
import re

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from anomalies import data, report, scores
from anomalies.scores import auroc, average_precision, estimated, judge
from common import gains, resumable
from common.processes import Processes
from common.report import read_lines
from flowplug.testing import z_test
from uci.models import NAMES

anomalies = importlib.import_module("anomalies.__main__")

CONFIG = {
    "data": "t", "model": "zuko-maf+residual", "seed": 0, "seconds": 600.0, "steps": 5, "parameters": 1500, "batch": 64,
    "lr": 2e-3, "weight_decay": 0.0, "warmup": 5, "clip": 100.0, "decay": 0.999, "checks": 2, "patience": 15,
    "amp": False, "processes": 1,
}  # fmt: skip
PARTS = ("train", "val", "test", "anomalies")


@pytest.fixture
def labelled(table):
    """The table of the other examples, with anomalies."""
    with np.load(table) as file:
        arrays = dict(file)
    np.savez(table, **arrays, anomalies=3 * np.random.default_rng(0).normal(size=(40, 6)))
    return table


@pytest.mark.parametrize("module", [data, scores])
def test_docstring_examples(module):
    assert doctest.testmod(module).failed == 0


class TestTables:
    @pytest.mark.parametrize(
        ("name", "rows", "width"), [("breast-cancer", (214, 71, 72, 212), 30), ("digits", (540, 180, 181, 896), 64)]
    )
    def test_shipped_ones_have_each_row_once(self, name, rows, width):
        table = data.load(name)
        parts = [getattr(table, part) for part in PARTS]
        assert tuple(map(len, parts)) == rows
        assert table.features == width
        assert len(torch.cat(parts).unique(dim=0)) == sum(rows)
        assert float(table.train.mean().abs()) < 1e-5
        again = data.load(name)
        assert all(torch.equal(part, getattr(again, part_name)) for part, part_name in zip(parts, PARTS, strict=True))

    def test_malignant_cells_and_large_digits_are_anomalies(self):
        malignant = data.load_breast_cancer()
        found = np.exp(data.cells()["anomalies"]) - 0.01
        np.testing.assert_allclose(found, malignant.data[malignant.target == 0], atol=1e-6)
        counts, labels = data.load_digits(return_X_y=True)
        np.testing.assert_array_equal(np.floor(data.digits()["anomalies"]), counts[labels > 4])

    def test_a_file_needs_anomalies_of_its_width(self, table, labelled, tmp_path):
        assert data.load(labelled).anomalies.shape == (40, 6)
        with np.load(labelled) as file:
            arrays = dict(file)
        np.savez(tmp_path / "narrow.npz", **arrays | {"anomalies": arrays["anomalies"][:, :5]})
        with pytest.raises(
            ValueError, match=r"train, val, test and anomalies must be tables .* of one width; .*narrow"
        ):
            data.load(tmp_path / "narrow.npz")
        np.savez(tmp_path / "lacking.npz", **{part: arrays[part] for part in PARTS[:3]})
        with pytest.raises(ValueError, match=r"lacks the arrays \['anomalies'\]"):
            data.load(tmp_path / "lacking.npz")


class TestScores:
    def test_known_scores_have_exact_values(self):
        normal, anomalous = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([1.5, 3.0]).double()
        assert float(judge(auroc, normal, anomalous).value) == pytest.approx(100 * 5 / 6)
        assert float(judge(average_precision, normal, anomalous).value) == pytest.approx(100 * (1 + 2 / 3) / 2)

    @pytest.mark.parametrize(
        ("statistic", "reference"), [(auroc, roc_auc_score), (average_precision, average_precision_score)]
    )
    def test_they_are_scikit_learns_with_ties_and_weights(self, statistic, reference):
        normal, anomalous = torch.randint(10, (40,)).double(), torch.randint(4, 14, (30,)).double()
        labels, found = [0] * 40 + [1] * 30, torch.cat([normal, anomalous])
        weights = torch.rand(70, dtype=torch.float64) + 0.1
        one = statistic(normal, anomalous, *weights.split([40, 30]))
        assert float(one) == pytest.approx(reference(labels, found, sample_weight=weights.numpy()))
        assert float(judge(statistic, normal, anomalous).value) == pytest.approx(100 * reference(labels, found))

    def test_the_error_of_an_auroc_is_about_delongs(self):
        normal, anomalous = torch.randint(10, (400,)).double(), torch.randint(4, 14, (300,)).double()
        above = (anomalous > normal[:, None]).double() + (anomalous == normal[:, None]).double() / 2
        variance = above.mean(1).var() / 400 + above.mean(0).var() / 300
        assert estimated(judge(auroc, normal, anomalous)).error == pytest.approx(200 * float(variance.sqrt()), rel=0.15)

    def test_errors_are_those_of_many_draws(self):
        draws = [(torch.randn(60).double(), 1 + torch.randn(80).double()) for _ in range(400)]
        for statistic in (auroc, average_precision):
            judged = [judge(statistic, *draw) for draw in draws]
            error = torch.tensor([estimated(one).error for one in judged]).mean() / 2
            assert float(error) == pytest.approx(float(torch.stack([one.value for one in judged]).std()), rel=0.12)
        exact = 50 * (1 + torch.erf(torch.tensor([0.5], dtype=torch.float64)))  # of Gaussians a deviation apart
        z_test("AUROC", [[judge(auroc, *draw).value[None]] for draw in draws], [exact])

    def test_differences_are_on_the_same_rows(self):
        normal, anomalous, noise = torch.randn(60).double(), 1 + torch.randn(80).double(), torch.randn(140).double()
        one = judge(auroc, normal, anomalous)
        assert estimated(one - one) == (0.0, 0.0)
        other = judge(auroc, normal + 0.1 * noise[:60], anomalous + 0.1 * noise[60:])
        assert estimated(one - other).error < estimated(one).error / 2

    @pytest.mark.parametrize("name", scores.BASELINES)
    def test_baselines_find_what_is_far_away(self, name):
        train, normal, far = torch.randn(200, 3), torch.randn(50, 3), 9 + torch.randn(20, 3)
        found = scores.BASELINES[name](train, torch.cat([normal, far]), 0)
        assert float(judge(auroc, found[:50], found[50:]).value) == 100
        assert torch.equal(found, scores.BASELINES[name](train, torch.cat([normal, far]), 0))

    def test_the_mahalanobis_distance_is_that_of_a_gaussian(self):
        train, rows = torch.randn(200, 3) @ torch.randn(3, 3), torch.randn(20, 3)
        off = (rows - train.mean(0)).double()
        wanted = (off @ train.double().T.cov(correction=0).inverse() * off).sum(1)
        torch.testing.assert_close(scores.mahalanobis(train, rows, 0).double(), wanted, rtol=1e-3, atol=1e-3)


def test_anomalies_reach_neither_training_nor_choice(labelled, tmp_path):
    with np.load(labelled) as file:
        arrays = dict(file)
    found = []
    for name, rows in (("as-they-are", arrays["anomalies"]), ("reversed", arrays["anomalies"][::-1])):
        np.savez(tmp_path / f"{name}.npz", **arrays | {"anomalies": rows})
        run = anomalies.NormalTraining(CONFIG, data.load(tmp_path / f"{name}.npz"), Processes("cpu"), tmp_path)
        run.run()
        line = anomalies.measured(run)
        values = torch.load(run.values, weights_only=True)["values"]
        found.append((line["validation"], values[:100], values[100:]))
    (best, normal, anomalous), (other_best, other_normal, other_anomalous) = found
    assert best == other_best
    assert torch.equal(normal, other_normal)
    assert torch.equal(anomalous, other_anomalous.flip(0))
    assert not torch.equal(anomalous, other_anomalous)


def test_scores_that_are_no_numbers_fail_a_run(labelled, tmp_path, monkeypatch):
    run = anomalies.NormalTraining(CONFIG, data.load(labelled), Processes("cpu"), tmp_path)
    monkeypatch.setattr(run, "tested", lambda rows: torch.full((len(rows),), math.nan))
    with pytest.raises(FloatingPointError, match="140 scores are NaN"):
        anomalies.measured(run)


@pytest.mark.slow
def test_the_grid_is_run_reported_and_resumed(labelled, tmp_path, capsys, monkeypatch):
    out, models = tmp_path / "out", ["zuko-maf", "zuko-maf+dense", "mahalanobis", "isolation-forest"]
    command = ["--data", str(labelled), "breast-cancer", "--steps", "4", "--parameters", "2000", "--checks", "2"]
    command += ["--seeds", "0", "1", "--out", str(out), "--models"]
    anomalies.main([*command, *models[:3]])
    before = read_lines(out / "results.jsonl")
    with pytest.raises(SystemExit):
        anomalies.main([*command, *models])
    assert "pass --resume" in capsys.readouterr().err
    monkeypatch.setattr(resumable, "run", None)  # no flow is trained again
    anomalies.main([*command, *models, "--resume"])
    lines = read_lines(out / "results.jsonl")
    assert lines[: len(before)] == before
    assert {(line["config"]["data"], line["config"]["model"], line["config"]["seed"]) for line in lines} == {
        (table, model, seed) for table in ("table", "breast-cancer") for model in models for seed in (0, 1)
    }
    for line in lines:
        saved = torch.load(out / "{data}-{model}-{seed}.values.pt".format(**line["config"]), weights_only=True)
        values, tests = saved["values"].double(), line["test_rows"]
        labels = torch.arange(len(values)) >= tests
        assert line["auroc"] == pytest.approx(100 * roc_auc_score(labels, -values))
        assert line["average_precision"] == pytest.approx(100 * average_precision_score(labels, -values))
    written = {path.name for path in out.iterdir() if path.suffix != ".pt"}
    assert written == {"gains.png", "results.jsonl", "rows.jsonl", "summary.md", "table.md"}
    assert (out / "summary.md").read_text() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "maf"], "--models must be of zuko-nsf, .*; got maf"),
        (["--data", "digits", "digits"], "--data must be tables of different names; got digits digits"),
        (["--steps", "5", "--seconds", "5"], "--steps is not allowed with --seconds"),
        (["--data", "wine"], "there is no file wine: give an .npz file .*, or breast-cancer or digits"),
    ],
)
def test_bad_options_are_refused(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as end:
        anomalies.main([*options, "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert re.fullmatch(f"error: .*{message}.*", capsys.readouterr().err.strip())


def test_flows_are_those_of_the_benchmark():
    assert set(anomalies.FLOWS) < set(NAMES)
    assert len(set(anomalies.FLOWS)) == len(anomalies.FLOWS) == 22


def saved_line(out, model, seed, values, validation=None):
    """Of two normal rows, then anomalies."""
    config, values = {"data": "t", "model": model, "seed": seed}, torch.tensor(values)
    torch.save({"config": config, "values": values}, out / f"t-{model}-{seed}.values.pt")
    trained = {"validation": validation, "steps": 10, "seconds": 2.0, "parameters": 5} if validation else {}
    return {"config": config, **report.judged(values, 2), **trained}


class TestSummary:
    def lines(self, out):
        return [
            saved_line(out, "zuko-nsf", 0, [2.0, 0.0, 1.0, -1.0], -3.0),  # 3 of 4 pairs in order
            saved_line(out, "zuko-nsf+dense", 0, [2.0, 1.0, 0.0, -1.0], -2.0),  # 4 of 4
            saved_line(out, "zuko-nsf+residual", 0, [0.0, 0.0, 1.0, -1.0], -1.0),  # 2 of 4
            saved_line(out, "zuko-nsf+dense", 1, [0.0, 1.0, 2.0, 3.0], -2.0),
            saved_line(out, "mahalanobis", 0, [2.0, 1.0, 0.0, -1.0]),
        ]

    def cells(self, out):
        return [
            [cell.strip() for cell in row.split("|")] for row in report.summary(self.lines(out), out).splitlines()[2:]
        ]

    def test_gains_are_of_the_same_seeds(self, tmp_path):
        plain, dense, residual, mahalanobis = self.cells(tmp_path)
        assert plain[6].startswith("75.00 ± ")
        assert plain[7] == ""
        assert dense[6].startswith("50.00 ± ")
        assert dense[7].startswith("+25.00 ± ")
        assert (dense[8], residual[8]) == ("+25.00", "-25.00")
        assert mahalanobis[6] == "100.00 ± 0.00"
        assert mahalanobis[4] == mahalanobis[5] == mahalanobis[7] == mahalanobis[12] == ""

    def test_the_mixture_is_chosen_by_likelihood_not_by_labels(self, tmp_path):
        assert [row[2] for row in self.cells(tmp_path)] == [
            "zuko-nsf", "zuko-nsf+dense", "**zuko-nsf+residual**", "mahalanobis"
        ]  # fmt: skip

    def test_a_picture_shows_the_gains(self, tmp_path, monkeypatch):
        drawn = []
        monkeypatch.setattr(gains, "draw", lambda panels, path, title, label: drawn.append((panels, label)))
        (tmp_path / "summary.md").write_text(report.summary(self.lines(tmp_path), tmp_path))
        assert report.draw(tmp_path)
        ((panels, label),) = drawn
        assert [(gain.flow, gain.estimate.mean, gain.chosen) for gain in panels["t"]] == [
            ("+dense", 25.0, False), ("+residual", -25.0, True)
        ]  # fmt: skip
        assert "AUROC" in label

    def test_failed_runs_and_missing_numbers_have_cells(self, tmp_path):
        failed = {"config": {"data": "t", "model": "zuko-nsf", "seed": 0}, "failed": "why"}
        overflown = saved_line(tmp_path, "zuko-nsf+dense", 0, [2.0, -math.inf, 1.0, -math.inf], -1.0)
        lines = [failed, overflown, saved_line(tmp_path, "mahalanobis", 0, [2.0, 1.0, 0.0, -1.0])]
        text = report.STUDY.report(lines, tmp_path)
        assert len({row.count("|") for row in report.table(lines).splitlines()}) == 1
        assert "| why |" in text
        assert "| 62.50 ± " in text  # a tie counts a half
        assert "| -1.000 | - |" in text
