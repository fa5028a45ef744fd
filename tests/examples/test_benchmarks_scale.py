"""How flows grow: fits on what is a power, and every case on sizes where it is known; CI runs the script as a whole."""

import math

import pytest
import torch

import flowplug as fp
from benchmarks import scale, scale_picture, two_processes
from benchmarks.costs import scaling
from benchmarks.measurements import exponent, line
from benchmarks.page import QUESTIONS


class TestExponents:
    def test_that_of_a_power_is_exact(self):
        sizes = [2, 8, 16, 128]
        figure = exponent(sizes, [3 * size**1.5 for size in sizes])
        assert figure.value == pytest.approx(1.5, abs=1e-12)
        assert figure.two_standard_errors == pytest.approx(0, abs=1e-12)

    def test_errors_are_those_of_least_squares(self):
        """On sizes e^-1, 1, e with residuals r, -2 r, r: the variance is 6 r^2, that of the slope half of it."""
        figure = exponent([math.exp(-1), 1, math.e], [math.exp(x) for x in (-2 + 0.1, -0.2, 2 + 0.1)])
        assert figure.value == pytest.approx(2)
        assert figure.two_standard_errors == pytest.approx(2 * 0.1 * math.sqrt(3))

    def test_two_sizes_have_no_error(self):
        assert exponent([1, 2], [1, 8]).two_standard_errors is None

    def test_the_upper_half_is_fitted(self):
        values = {size: 1.0 if size < 8 else size**2.0 for size in (1, 2, 4, 8, 16, 32)}
        assert scale.fitted(values).value == pytest.approx(2)
        assert scale.span(values) == "8 to 32"

    def test_what_is_below_its_noise_has_none(self):
        assert math.isnan(scale.fitted({2: 1.0, 4: -1.0, 8: 2.0}).value)
        assert math.isnan(scale.fitted({2: 1.0}).value)

    def test_overhead_ends_where_all_later_times_are_twice_the_first(self):
        assert scale.doubled({1: 1.0, 2: 2.1, 4: 1.5, 8: 2.0, 16: 9.0}).value == 8
        assert math.isnan(scale.doubled({1: 1.0, 2: 1.5}).value)


class TestCases:
    @pytest.mark.parametrize("flow", scaling.FLOWS)
    def test_every_row_is_worked_on(self, flow):
        shapes = {"evaluation": (7,), "sampling": (7, 3)}
        for phase, shape in shapes.items():
            assert scaling.Case(flow, phase, 3, 1, rows=7, batch=3).prepared()().shape == shape

    @pytest.mark.parametrize("flow", scaling.FLOWS)
    def test_training_leaves_a_gradient(self, flow):
        work = scaling.Case(flow, "training", 3, 1, rows=7, batch=3).prepared()
        work()
        assert all(parameter.grad is not None for parameter in work.args[0].parameters() if parameter.requires_grad)

    def test_wide_flows_are_measured_on_fewer_rows(self):
        assert scaling.Case(scaling.WIDE, "evaluation", 1024, 2, 256, 256).measured == 16
        assert scaling.Case("residual", "evaluation", 1024, 2, 256, 256).measured == 256

    def test_one_axis_varies(self):
        settings = scale.Settings(rows=(10, 20), width=3, depth=1, chunk=5)
        (_, first), (size, second) = scale.cases(settings, "rows", "evaluation")
        assert scaling.WIDE not in second
        assert (second["dense"].rows, size) == (20, 20)
        assert {**vars(first["dense"]), "rows": 20} == vars(second["dense"])

    def test_what_takes_long_is_timed_once(self, monkeypatch):
        monkeypatch.setattr(scaling, "LONG", 0.05)
        x = torch.randn(600, 600)
        times = scaling.timed({"long": lambda: [x @ x for _ in range(30)], "short": lambda: None}, 3)
        assert [len(values) for values in times.values()] == [1, 3]


class TestParts:
    def test_parts_add_up(self, monkeypatch):
        known = {"whole": 10.0, "linear parts": 1.0, "blocks": 8.0, "networks": 5.0, "norms": 2.0}
        monkeypatch.setattr(scaling, "paired", lambda works, rounds, **_: {work: [known[work]] for work in works})
        times = scaling.parts_of("training", 3, 1, rows=4, rounds=1)
        assert times == {"whole": [10.0], "linear parts": [1.0], "networks": [3.0], "log-dets": [3.0], "norms": [2.0]}

    @pytest.mark.parametrize(
        ("phase", "parts"),
        [
            ("training", {"whole", "linear parts", "networks", "log-dets", "norms"}),
            ("evaluation", {"whole", "linear parts", "networks", "log-dets"}),
            ("sampling", {"whole", "linear parts", "solver"}),
        ],
    )
    def test_every_phase_has_its_own(self, phase, parts):
        assert set(scaling.parts_of(phase, 3, 1, rows=4, rounds=2)) == parts

    def test_steps_without_log_dets_have_the_networks_gradients(self):
        """As if the log-det were a constant."""
        block, x = fp.ResidualTransform(fp.LipschitzMLP(3)), torch.randn(5, 3)
        scaling.without(scaling.gradient, [block], x)
        found = [parameter.grad.clone() for parameter in block.parameters()]
        block.zero_grad()
        ((x + block.g(x)).square().sum(1) / 2).mean().backward()
        for one, other in zip(found, block.parameters(), strict=True):
            torch.testing.assert_close(one, other.grad)


class TestPicture:
    @pytest.fixture
    def lines(self, monkeypatch):
        """Of small flows; what processes of their own take is known."""
        monkeypatch.setattr(scale, "peak_alone", lambda warm, work: 1.0)
        settings = scale.Settings(
            features=(2, 4), rows=(4, 8), blocks=(1,), width=2, depth=1, batch=4, chunk=4, rounds=2
        )
        return [line(*measurement) for measurement in scale.measure(settings)]

    def test_it_is_drawn_from_the_lines(self, lines, tmp_path):
        scale_picture.draw(lines, tmp_path / "scale.png")
        assert (tmp_path / "scale.png").read_bytes()[:4] == b"\x89PNG"
        assert [path.name for path in tmp_path.iterdir()] == ["scale.png"]

    def test_its_points_and_slopes_are_those_of_the_lines(self, lines):
        found = scale_picture.points(lines, "Memory against features", "flow", "D", "memory", phase="training")
        assert found == {flow: {2: 1.0, 4: 1.0} for flow in ("residual", "dense", "zuko MAF")}
        slopes = scale_picture.slopes(
            lines, "Growth of flows", "flow", "exponent of memory", phase="training", along="features"
        )
        assert slopes == dict.fromkeys(found, " 0.00")

    def test_every_table_has_a_section(self, lines):
        assert all(f"## {table}\n" in QUESTIONS.read_text() for table in {each["table"] for each in lines})


class TestTwoProcesses:
    def test_differences_are_the_largest(self):
        one, two = ({"curve": [[0.0, 1, a, 0.0], [0.0, 2, b, 0.0]]} for a, b in ((1.0, 2.0), (1.5, 1.0)))
        assert two_processes.difference(one, two) == 1.0
        with pytest.raises(ValueError, match="zip"):
            two_processes.difference(one, {"curve": two["curve"][:1]})

    def test_a_run_has_a_line_for_each_seed(self, table, tmp_path):
        settings = two_processes.Settings(data=str(table), steps=4, batch=32, parameters=500, checks=2)
        lines = two_processes.trained(settings, "zuko-maf", two_processes.ALONE, tmp_path / "out")
        assert [line["config"]["seed"] for line in lines] == list(two_processes.SEEDS)
        assert all(len(line["curve"]) == 2 for line in lines)
        assert two_processes.seconds(lines) == lines[0]["seconds"] + lines[1]["seconds"]

    def test_a_run_that_ends_early_says_why(self, table, tmp_path):
        settings = two_processes.Settings(data=str(tmp_path / "none.npz"))
        with pytest.raises(ValueError, match=r"uci.py --models zuko-maf ended with 2: .*none.npz"):
            two_processes.trained(settings, "zuko-maf", two_processes.ALONE, tmp_path / "out")
