"""Compiled: every transform is one graph, with the numbers of eager, whatever is left to chance or looked at."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

import flowplug as fp
from cases import ADAPTERS, CORE, residual
from helpers import ASSERTS

BREAKS = {
    "Inverse": "a numerical inverse runs until all rows have converged",
    "Inverse squeezed": "as that of Inverse",
    "PowerSeries Autograd": "the graph of the gradient is as long as the series, which is left to chance",
    "normflows own net": "the host's network writes on its buffers",
    "normflows own CNN": "the host's network writes on its buffers",
}
# By wrappers that are there with others, of what is there without.
AGAIN = ("squeezed", "image flow", "Patches")
ROWS = {
    **{name: row for name, row in CORE.items() if name not in BREAKS},
    **{name: row for name, row in ADAPTERS.items() if name not in BREAKS and not name.endswith(AGAIN)},
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


def started(row):
    transform = row.make()
    transform(*row.inputs())
    transform(*row.inputs(300))
    return transform


def numbers(transform, call, x, context):
    torch.manual_seed(1)
    x = x.detach().clone().requires_grad_()
    for parameter in transform.parameters():
        parameter.grad = None
    y, ladj = call(x, context)
    weights = torch.arange(ladj.numel(), dtype=ladj.dtype).reshape(ladj.shape)
    (y.square().sum() / 3 + (ladj * weights).sum()).backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in transform.parameters()]
    return [y.detach(), ladj.detach(), x.grad, *gradients]


def compiled(transform, **options):
    return torch.compile(transform, backend="aot_eager", fullgraph=True, **options)


def assert_alike(got, wanted, eps, units=1e4):
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(
            a, b, rtol=units * eps, atol=units * eps * (1 + float(b.abs().amax() if b.numel() else 0))
        )


@pytest.mark.slow
@pytest.mark.ways
@pytest.mark.filterwarnings("ignore")  # those of the compiler about what it traces
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ROWS)
def test_a_transform_is_one_graph_with_the_numbers_of_eager(name, training, eps):
    x, context = ROWS[name].inputs()
    transform = started(ROWS[name]).train(training)
    wanted = numbers(transform, transform, x, context)
    got = numbers(transform, compiled(transform), x, context)
    if name == "zuko stochastic" and training:  # noise is drawn where it is used, in another order
        got, wanted = got[:1], wanted[:1]
    assert_alike(got, wanted, eps)


@pytest.mark.slow
@pytest.mark.ways
@pytest.mark.filterwarnings("ignore")  # those of the compiler about what it traces
@pytest.mark.parametrize("name", ROWS)
def test_an_evaluation_without_gradient_is_one_graph(name, eps):
    x, context = ROWS[name].inputs()
    transform = started(ROWS[name]).eval()
    with torch.no_grad():
        assert_alike(compiled(transform)(x, context), transform(x, context), eps)


@pytest.mark.filterwarnings("ignore")  # those of the compiler about what it traces
class TestChance:
    def test_rows_that_go_on_have_the_numbers_of_eager(self, eps):
        """Seeds of which a quarter lets the last group go on, some for several terms."""
        transform = residual(event=10, logdet=fp.Krylov())
        call, x, lengths = compiled(transform), torch.randn(64, 10), set()
        for seed in range(30):
            torch.manual_seed(seed)
            wanted = transform(x)
            torch.manual_seed(seed)
            assert_alike(call(x), wanted, eps)
            lengths.add(len(transform.logdet.terms.schedule(64, None, torch.Generator().manual_seed(seed))))
        assert len(lengths) >= 3

    def test_no_schedule_is_compiled_anew(self):
        transform = residual(event=10, logdet=fp.PowerSeries(terms=fp.Roulette(fp.Geometric(0.3), exact=1)))
        call = compiled(transform)
        call(torch.randn(64, 10))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(40):
                call(torch.randn(64, 10))[1].sum().backward()

    def test_quadrature_is_a_constant(self):
        nodes = []

        def backend(graph, inputs):
            nodes.extend(str(node.target) for node in graph.graph.nodes)
            return graph.forward

        torch.compile(residual(event=10, logdet=fp.Krylov()), backend=backend, fullgraph=True)(torch.randn(64, 10))
        assert not [node for node in nodes if "linalg.eigh" in node or "linalg_eigh" in node]

    def test_batches_of_other_sizes(self, eps):
        transform = fp.ComposedTransform(residual(event=10, logdet=fp.Krylov()), fp.DenseTransform(10))
        call = compiled(transform)
        for count in (64, 64, 50, 7, 33, 1):
            x = torch.randn(count, 10)
            torch.manual_seed(count)
            wanted = transform(x)
            torch.manual_seed(count)
            assert_alike(call(x), wanted, eps)

    @pytest.mark.parametrize("training", [True, False])
    def test_parameters_given_by_torch_func_are_used(self, training, eps):
        transform = residual(event=10, logdet=fp.PowerSeries(), eval_logdet=fp.Krylov()).train(training)
        other = {name: 0.9 * value.detach() for name, value in transform.named_parameters()}
        x = torch.randn(40, 10)

        def call(x):
            return torch.func.functional_call(transform, other, (x,))

        torch.manual_seed(0)
        wanted = call(x)
        torch.manual_seed(0)
        assert_alike(compiled(call)(x), wanted, eps)

    def test_copies_find_themselves(self, eps):
        transform = residual(event=10, logdet=fp.PowerSeries(), eval_logdet=fp.Krylov())
        for twin in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
            del transform.logdet
            transform.logdet = fp.Krylov()
            with torch.no_grad():
                twin.g.layers[0].weight.mul_(0.5)
            x = torch.randn(20, 10)
            torch.manual_seed(0)
            wanted = twin(x)
            torch.manual_seed(0)
            assert_alike(compiled(twin)(x), wanted, eps)

    def test_conditions_are_those_of_the_thread(self):
        transform = residual(event=10).eval()
        call, x, seen = compiled(transform), torch.randn(8, 10), []
        assert call(x)[1].abs().sum() > 0
        with fp.no_logdet():
            assert call(x)[1].abs().sum() == 0
            thread = threading.Thread(target=lambda: seen.append(float(transform(x)[1].abs().sum())))
            thread.start()
            thread.join()
        assert seen[0] > 0
        assert call(x)[1].abs().sum() > 0

    def test_fixed_noise_repeats(self):
        transform = residual(event=10, logdet=fp.Krylov())
        call, x = compiled(transform), torch.randn(40, 10)
        with fp.fixed_noise(3):
            wanted = transform(x)[1]
            assert torch.equal(call(x)[1], wanted)
            assert torch.equal(call(x)[1], wanted)
        assert not torch.equal(call(x)[1], wanted)


@pytest.mark.filterwarnings("ignore")  # those of the compiler about what it traces
class TestErrors:
    @ASSERTS
    @pytest.mark.parametrize("training", [True, False])
    def test_nan_is_refused_with_the_name(self, training):
        for transform in (residual(), fp.DenseTransform(3), fp.ComposedTransform(fp.DenseTransform(3))):
            call = compiled(transform.train(training))
            call(torch.randn(4, 3))
            with pytest.raises(
                RuntimeError, match=f"{type(transform).__name__}: the input holds NaN or infinite values"
            ):
                call(torch.full((4, 3), torch.inf))

    @ASSERTS
    def test_a_singular_matrix_is_refused(self):
        transform = fp.DenseTransform(3)
        call = compiled(transform)
        call(torch.randn(4, 3))
        with torch.no_grad():
            transform.weight[0] = 0
        with pytest.raises(RuntimeError, match="the matrix of a DenseTransform is singular or not finite"):
            call(torch.randn(4, 3))

    @pytest.mark.parametrize("training", [True, False])
    def test_a_bound_that_reaches_1_is_noticed(self, training):
        layer = nn.Linear(3, 3)
        with torch.no_grad():
            layer.weight.copy_(0.5 * torch.eye(3))
        transform = fp.ResidualTransform(layer, logdet=fp.ExactLogDet()).train(training)
        call = compiled(transform)
        for _ in range(5):
            call(torch.randn(4, 3))
        assert transform._watch._passes == (5 if training else 0)
        with torch.no_grad():
            layer.weight.mul_(3)
        transform._watch._passes = 7  # the eighth is looked at
        with pytest.raises(fp.LipschitzError, match=r"bound 1\.5 "):
            call(torch.randn(4, 3))

    def test_what_starts_from_data_breaks_the_graph_until_it_has(self):
        transform = fp.ComposedTransform(fp.Whitening(3), fp.ActNorm(3))
        with pytest.raises(torch._dynamo.exc.Unsupported):
            compiled(transform)(torch.randn(100, 3))
        transform.start(torch.randn(100, 3))
        compiled(transform)(torch.randn(100, 3))
        again = fp.ComposedTransform(fp.Whitening(3), fp.ActNorm(3))
        x = 5 + torch.randn(100, 3)
        y, _ = torch.compile(again, backend="aot_eager")(x)
        assert y.mean().abs() < 1e-4
        assert all(part.initialized for part in again.transforms)

    def test_a_network_that_writes_on_buffers_runs_eagerly(self, eps):
        class Counting(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("calls", torch.zeros(()))

            def forward(self, x):
                self.calls.add_(1)
                return 0.5 * x.sin()

        @fp.lipschitz_bound.register
        def _(module: Counting) -> fp.LipschitzBound:
            return fp.LipschitzBound(0.5, elementwise=True)

        transform, x = fp.ResidualTransform(Counting(), logdet=fp.ExactLogDet()), torch.randn(4, 3)
        assert_alike(torch.compile(transform, backend="aot_eager")(x), transform(x), eps)
        assert transform.g.calls == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the compiler about what it traces
@pytest.mark.usefixtures("users_defaults")
@pytest.mark.parametrize(
    "make",
    [
        lambda: fp.ResidualStack(6, 1, (16,), logdet=fp.ExactLogDet()),
        lambda: fp.ResidualStack(6, 1, (16,), logdet=fp.Krylov()),
        lambda: fp.ComposedTransform(fp.MarginalGaussianization(6), fp.ActNorm(6), fp.DenseTransform(6)),
    ],
)
def test_generated_code_has_the_gradients_of_eager(make):
    """Of its own layouts, which made torch's slogdet wrong by half; and of vectors, which make hosts' splines so."""
    flow = make()
    x = torch.randn(300, 6)
    flow(x)
    with torch._inductor.config.patch(fallback_random=True):
        got = numbers(flow, torch.compile(flow, fullgraph=True), x, None)
    assert_alike(got, numbers(flow, flow, x, None), torch.finfo(torch.float32).eps)


@pytest.mark.filterwarnings("ignore")  # those of the compiler about what it traces
class TestExport:
    @pytest.mark.parametrize("make", [lambda: fp.ResidualStack(3, 2, (8,)), lambda: residual(context_features=2)])
    def test_a_program_takes_batches_of_any_size(self, make, eps):
        transform = make()
        transform(torch.randn(100, 3), None if not transform.context_features else torch.randn(100, 2))
        given = [torch.randn(9, 3)] + [torch.randn(9, 2)] * (transform.context_features > 0)
        rows = torch.export.Dim("rows")
        transform.eval()
        with torch.no_grad():
            program = torch.export.export(transform, tuple(given), dynamic_shapes=tuple({0: rows} for _ in given))
            for count in (9, 4, 30):
                inputs = [torch.randn(count, t.shape[1]) for t in given]
                assert_alike(program.module()(*inputs), transform(*inputs), eps)
        assert all("flowplug" not in str(node.target) for node in program.graph.nodes)

    def test_what_draws_in_python_is_refused(self):
        transform = residual(eval_logdet=fp.Krylov()).eval()
        with pytest.raises(Exception, match=r"pass eval_logdet=ExactLogDet\(\)"):
            torch.export.export(transform, (torch.randn(9, 3),))
