"""examples/uci/report.py: the tables, and the picture of the gains."""

import torch

from common import gains
from common.gains import Gain
from common.paired import Estimate
from common.report import markdown
from uci.report import GAIN, draw, summary, table


def line(data, *, published):
    numbers = dict.fromkeys(("test_log_likelihood", "two_standard_errors", "steps_per_second", "peak_memory_mib"), 1.0)
    config = {"data": data, "model": "dense", "seed": 0}
    return {"config": config, "published": published, **numbers, "parameters": 5, "steps": 2, "sampling_ms": None,
            "round_trip_error": None}  # fmt: skip


class TestTable:
    def test_published_figures_stand_beside_published_data_only(self):
        report = table([line("MINIBOONE", published=False), line("table", published=False)])
        assert "published" not in report
        assert len(report.splitlines()) == 4
        report = table([line("MINIBOONE", published=True), line("table", published=False)])
        assert len(report.splitlines()) == 2 + 1 + 8 + 1
        assert "| MINIBOONE | Gresele et al. (2020), published |  | -13.372 ± 0.450 |" in report
        assert "| MINIBOONE | MAF MoG (5), published |  | -11.995 ± 0.462 |" in report

    def test_rows_have_a_cell_for_each_column(self):
        failed = {"config": {"data": "t", "model": "dense", "seed": 0}, "published": False, "failed": "why"}
        report = table([line("POWER", published=True), failed])
        assert len({row.count("|") for row in report.splitlines()}) == 1


def saved_line(out, model, seed, values, lr=1e-3, validation=0.0):
    config = {"data": "t", "model": model, "seed": seed, "lr": lr}
    torch.save({"config": config, "values": torch.tensor(values)}, out / f"t-{model}-{seed}.values.pt")
    return {"config": config, "steps": 10 + seed, "validation": validation}


class TestSummary:
    def test_differences_are_of_rows_and_their_error_of_rows_and_seeds(self, tmp_path):
        lines = [
            saved_line(tmp_path, "zuko-maf", 0, [0.0, 100.0, 50.0, 7.0]),
            saved_line(tmp_path, "zuko-maf", 1, [1.0, 101.0, 51.0, 8.0]),
            saved_line(tmp_path, "zuko-maf+dense", 1, [4.0, 106.0, 54.0, 13.0]),  # + 3 5 3 5
            saved_line(tmp_path, "zuko-maf+dense", 0, [1.0, 103.0, 51.0, 10.0]),  # + 1 3 1 3
            saved_line(tmp_path, "zuko-maf+dense", 2, [9.0, 9.0, 9.0, 9.0]),  # without its plain flow
        ]
        *_, plain, row = summary(lines, tmp_path).splitlines()
        mean = 2 * ((0.5**2 + 100.5**2 + 50.5**2 + 7.5**2 - 4 * 39.75**2) / 3 / 4 + 0.5 / 2) ** 0.5
        gain = 2 * (4 / 3 / 4 + 2 / 2) ** 0.5  # means of rows 2 4 2 4, of seeds 4 2
        assert plain == f"| t | zuko-maf | 0 1 | 0.000 | 39.750 ± {mean:.3f} | 10 |  |  |  |"
        assert row.startswith("| t | **zuko-maf+dense** | 1 0 2 | 0.000 | 31.")
        assert row.endswith(f" | 11 | +3.000 ± {gain:.3f} | +4.00 +2.00 |  |")

    def test_one_seed_has_the_error_of_its_rows(self, tmp_path):
        lines = [
            saved_line(tmp_path, "residual", 0, [1.0, 3.0, 1.0, 3.0]),
            saved_line(tmp_path, "normflows-residual", 0, [0.0, 0.0, 0.0, 0.0]),
        ]
        *_, row, _ = summary(lines, tmp_path).splitlines()
        assert row.split(" | ")[2:] == ["0", "0.000", "2.000 ± 1.155", "10", "+2.000 ± 1.155", "+2.00", " |"]

    def test_the_best_mixture_on_validation_rows_is_in_bold(self, tmp_path):
        models = {"zuko-maf": 9, "zuko-maf+dense": 1, "zuko-maf+residual": 2, "nflows-rqs+dense": 0, "dense": 5}
        lines = [saved_line(tmp_path, model, 0, [0.0, 1.0], validation=v) for model, v in models.items()]
        bold = [row.split(" | ")[1] for row in summary(lines, tmp_path).splitlines() if "**" in row]
        assert bold == ["**zuko-maf+residual**", "**nflows-rqs+dense**"]

    def test_marginals_are_judged_against_the_same_flow_without(self, tmp_path):
        models = {"residual": [1.0, 1.0], "residual+marginal": [2.0, 4.0], "normflows-residual": [0.0, 0.0]}
        lines = [saved_line(tmp_path, model, 0, values) for model, values in models.items()]
        row = summary(lines, tmp_path).splitlines()[3]
        assert row.endswith(" | +3.000 ± 2.000 | +3.00 | +2.000 ± 2.000 |")

    def test_values_of_other_options_and_failed_runs_are_not_compared(self, tmp_path):
        old = saved_line(tmp_path, "zuko-maf", 0, [0.0, 1.0])
        saved_line(tmp_path, "zuko-maf", 0, [5.0, 5.0], lr=2e-3)
        lines = [old, saved_line(tmp_path, "zuko-maf+dense", 0, [1.0, 1.0])]
        failed = {"config": {"data": "t", "model": "zuko-maf+residual", "seed": 0, "lr": 1e-3}, "failed": "why"}
        rows = summary([*lines, failed], tmp_path).splitlines()[2:]
        assert [row.count("±") for row in rows] == [0, 1, 0]


def written(out, *rows):
    (out / "summary.md").write_text(markdown(["data", "model", GAIN], rows))
    return out


class TestDraw:
    def test_gains_are_those_of_the_summary(self, tmp_path, monkeypatch):
        drawn = []
        monkeypatch.setattr(gains, "draw", lambda panels, path, title, label: drawn.append((panels, path.name)))
        out = written(
            tmp_path,
            ["power", "zuko-nsf", ""],
            ["power", "**zuko-nsf+dense**", "+0.403 ± 0.182"],
            ["power", "zuko-nsf+residual, zuko-nsf+residual, compiled", "-0.100 ± 0.050"],
            ["protein", "**residual**", "+2.249 ± 0.169"],
        )
        assert draw(out)
        power = [
            Gain("zuko-nsf", "+dense", Estimate(0.403, 0.182), chosen=True),
            Gain("zuko-nsf", "+residual, zuko-nsf+residual, compiled", Estimate(-0.1, 0.05)),
        ]
        protein = [Gain("normflows-residual", "residual", Estimate(2.249, 0.169), chosen=True)]
        assert drawn == [({"power": power, "protein": protein}, "gains.png")]

    def test_no_gain_no_picture(self, tmp_path):
        assert not draw(written(tmp_path, ["power", "residual", ""]))
        assert not (tmp_path / "gains.png").exists()

    def test_gains_that_are_not_finite_are_left_out_of_the_scale(self, tmp_path):
        rows = [
            ["power", f"zuko-nsf+{name}", f"{value} ± nan"] for name, value in (("dense", "-inf"), ("residual", "+nan"))
        ]
        assert draw(written(tmp_path, *rows))
