"""How flows grow: fits on what is a power, and every case on sizes where it is known; CI runs the script as a whole."""

import math

import pytest
import torch

import flowplug as fp
from benchmarks import scale
from benchmarks.costs import scaling
from benchmarks.measurements import exponent


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
    def test_parts_add_up(self):
        times = scaling.parts_of("training", 6, 2, rows=32, rounds=9)
        medians = {part: sorted(values)[4] for part, values in times.items()}
        whole = medians.pop("whole")
        assert set(medians) == {"linear parts", "networks", "norms", "log-dets"}
        assert 0.5 < sum(medians.values()) / whole < 1.5

    @pytest.mark.parametrize(
        ("phase", "parts"),
        [
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
