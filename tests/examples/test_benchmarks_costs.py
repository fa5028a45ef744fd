"""What one_graph.py and gpu.py measure, on sizes where it is known; CI runs them as a whole."""

import pytest
import torch
from torch import nn

import flowplug as fp
from benchmarks import gpu, one_graph
from benchmarks.costs import counts, evaluation, flows, steps
from common.densities import of_transform


class Broken(nn.Module):
    """Two graphs, with a break between."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        y = self.layer(x)
        torch._dynamo.graph_break()
        return y.sin()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own, where a graph breaks
def test_graphs_are_those_of_torch():
    x = torch.randn(4, 3)
    assert counts.graphs_of(nn.Linear(3, 3), x, training=True) == 1
    assert counts.graphs_of(Broken(), x, training=False) == 2


@pytest.mark.parametrize("name", counts.HOSTS)
def test_hosts_flows_are_those_alone_and_a_residual_transform(name):
    make, alone = counts.HOSTS[name]
    density = make(4)
    assert density(torch.randn(8, 4)).shape == (8,)
    ours = [part for part in density.modules() if isinstance(part, fp.ResidualTransform)]
    if alone is not None:
        assert len(ours) == 1
        parts = [type(part) for part in alone(4).modules()]
        assert not any(issubclass(part, fp.Transform) for part in parts)
        assert len(parts) < len(list(density.modules()))


def test_operators_and_products_are_counted():
    density = of_transform(fp.ComposedTransform(fp.DenseTransform(3, activation=None)), 3)
    total, products = counts.calls(density, torch.randn(8, 3))
    assert total > 5 * products > 5
    assert (total, products) == counts.calls(density, torch.randn(8, 3))


@pytest.fixture
def small():
    """Sizes at which nothing takes long."""
    return flows.Sizes(features=(3,), rows=8, blocks=1, rounds=2, samples=4, large=64, images=(4, 6), backend="eager")


def figures(measurements):
    return [{name: getattr(figure, "value", figure) for name, figure in parts.items()} for _, _, parts in measurements]


def test_what_is_not_the_network_is_the_share(small):
    (found,) = figures(evaluation.norms(small))
    assert found["share of the rest"] == pytest.approx(100 * (1 - found["the network alone"] / found["pass"]))


def test_samples_and_log_likelihoods_are_timed(small):
    assert figures(evaluation.samples(small))[0]["sample / without log-dets"] > 0
    (found,) = figures(evaluation.log_likelihoods(small))
    assert found["ResidualFlow / zuko NSF"] > 0


def test_a_ratio_is_of_the_totals():
    layer = nn.Linear(2, 1)

    def twice(x):
        return once(x) + once(x)

    def once(x):
        for _ in range(200):
            layer(x)
        return layer(x).sum()

    figure = flows.steps_over(twice, once, torch.randn(4, 2), [layer], 9)
    assert 1.4 < figure.value < 2.8


def test_the_compilers_room_is_as_before():
    limit = torch._dynamo.config.cache_size_limit
    with flows.compiling(3):
        assert torch._dynamo.config.cache_size_limit == 3 * limit
    assert torch._dynamo.config.cache_size_limit == limit


def test_every_measure_has_a_name():
    assert set(one_graph.MEASURES.values()) >= {steps.compiled, steps.splines, steps.normflows, counts.recompilations}
    assert one_graph.Settings(only=("graphs",), flows=("dense",)).flows == ("dense",)


def test_without_a_gpu_the_script_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    with pytest.raises(SystemExit) as end:
        gpu.run(gpu.measure, gpu.Settings, None)
    assert end.value.code == 2
    message = "error: --device cuda needs a GPU that torch can use, and there is none: use cpu\n"
    assert capsys.readouterr().err == message


def test_steps_of_every_flow_are_timed():
    settings = gpu.Settings(features=(3,), rows=8, rounds=2, modes=("eager",), device="cpu")
    assert [setting["flow"] for _, setting, _ in gpu.measure(settings)] == list(gpu.FLOWS)
    assert not list(gpu.measure(gpu.Settings(features=(3,), seconds=1e-9, device="cpu")))


def test_rounds_in_which_something_was_compiled_do_not_count(monkeypatch):
    traced, calls = iter([0, 1, 1, 1]), []
    monkeypatch.setattr(flows, "frames", lambda: next(traced))
    times = flows.settled({"a": lambda: calls.append(1)}, [], 3)
    assert len(times["a"]) == 3
    assert len(calls) == 2 * (3 + flows.WARM)
