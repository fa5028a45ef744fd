"""The residual transform: refused bounds, pieces, compiled and functional calls."""

import math

import pytest
import torch
from torch import nn

import flowplug as fp
from cases import residual, small_mlp
from helpers import SOLVERS, Scale, assert_all_close, sequential


class TestBound:
    def test_a_bound_of_1_or_more_is_refused_at_construction(self):
        layer = fp.LipschitzLinear(1, 1, bound=1.0)
        nn.init.constant_(layer.weight, 2.0)
        with pytest.raises(fp.LipschitzError, match="g = Sequential has the Lipschitz bound 1 in the inf-norm"):
            fp.ResidualTransform(nn.Sequential(layer))

    def test_a_bound_that_grew_is_refused_where_invertibility_matters(self):
        layer = nn.Linear(3, 3)
        with torch.no_grad():
            layer.weight.mul_(0.1)
        with pytest.warns(fp.UnboundedBranchWarning):
            transform, x = fp.ResidualTransform(nn.Sequential(layer, nn.Tanh())), torch.randn(4, 3)
        transform.eval()(x)
        with torch.no_grad():
            layer.weight.mul_(100)
        for training, call in ((False, transform), (False, transform.inverse), (True, transform.inverse)):
            transform.train(training)
            with pytest.raises(fp.LipschitzError, match="needs one below 1: scale its layers down"):
                call(x)


class TestBoundIsMeasuredOnce:
    """In a pass, whoever asks for it."""

    CERTIFIED = fp.Roulette(fp.Certified(), exact=1)
    LOGDETS = (fp.ExactLogDet(), fp.PowerSeries(terms=CERTIFIED), fp.Krylov(terms=CERTIFIED))

    @pytest.fixture(params=["network", "plain"])
    def counted(self, request, monkeypatch):
        """A branch g, and a list that grows by every measurement of its bound in a pass."""
        g, calls = small_mlp() if request.param == "network" else sequential(), []
        owner = g if request.param == "network" else fp.Branch
        measure = owner.certify
        monkeypatch.setattr(owner, "certify", lambda *arguments: calls.append(1) or measure(*arguments))
        return g, calls

    @pytest.mark.parametrize("logdet", LOGDETS)
    def test_forward(self, counted, logdet):
        g, calls = counted
        transform, x = fp.ResidualTransform(g, logdet=logdet, eval_logdet=logdet), torch.randn(50, 3)
        calls.clear()  # of the check at construction
        transform(x)
        assert len(calls) == (0 if logdet == fp.ExactLogDet() else 1)
        calls.clear()
        transform.eval()(x)
        assert len(calls) == 1

    @pytest.mark.parametrize("solver", SOLVERS)
    @pytest.mark.parametrize("logdet", LOGDETS)
    def test_inverse_and_its_derivative(self, counted, logdet, solver):
        g, calls = counted
        transform = fp.ResidualTransform(g, eval_logdet=logdet, solver=solver).eval()
        calls.clear()
        x, _ = transform.inverse(torch.randn(20, 3))
        assert len(calls) == 1
        x.sum().backward()
        assert len(calls) == 1


def test_the_bound_is_read_from_the_device_once():
    """However many terms a certified roulette has."""
    reads = []

    class Counted(fp.LipschitzMLP):
        def certify(self, weights):
            found = super().certify(weights)
            return found._replace(value=Read(found.value))

    class Read:
        def __init__(self, value):
            self.value = value

        def __float__(self):
            reads.append(1)
            return float(self.value.detach())

    transform, x = fp.ResidualTransform(Counted(3), logdet=fp.PowerSeries()), torch.randn(500, 3)
    reads.clear()
    transform(x)
    assert len(reads) == 1


class TestNotFinite:
    def test_one_row_that_is_not_finite_is_named(self):
        y = torch.randn(5, 3)
        y[3, 1] = math.nan
        with pytest.raises(fp.NonFiniteError, match=r"1 NaN or infinite value\(s\), the first at index \(3, 1\)"):
            residual().inverse(y)

    def test_what_was_not_looked_at_before(self, monkeypatch):
        """As in training on a GPU."""
        monkeypatch.setattr("flowplug._transform._check_tensor", lambda *_, **__: None)
        self.test_one_row_that_is_not_finite_is_named()

    def test_weights_that_are_not_finite(self):
        transform = residual().eval()
        with torch.no_grad():
            transform.g.layers[1].weight[0, 0] = math.nan
        for direction in (transform, transform.inverse):
            with pytest.raises(fp.LipschitzError, match=r"bound nan .* its weights hold NaN"):
                direction(torch.randn(5, 3))


class TestPieces:
    """Without a graph, as many rows are evaluated at a time as have their numbers in chunk_size."""

    @pytest.mark.parametrize("width", [0, 2])
    @pytest.mark.parametrize("logdet", [fp.ExactLogDet(), fp.Krylov(terms=fp.Truncated(3))])
    def test_pieces_give_what_the_whole_gives(self, width, logdet, eps):
        g, context = small_mlp(context_features=width), torch.randn(7, 1, width) if width else None
        whole, pieces = (fp.ResidualTransform(g, logdet=logdet, chunk_size=size) for size in (9000, 36))
        x = torch.randn(7, 5, 3)
        with torch.no_grad():
            results = [[*t(x, context), *t.inverse(x, context)] for t in (whole, pieces)]
        for i, (a, b) in enumerate(zip(*results, strict=True)):
            assert a.shape == b.shape
            if logdet == fp.ExactLogDet() or i % 2 == 0:
                torch.testing.assert_close(a, b, atol=100 * eps, rtol=100 * eps)

    def test_sizes(self):
        sizes, transform = [], residual()
        transform.chunk_size = 4 * 8  # the hidden layers are wider than the events
        transform.logdet = lambda branch, x, noise: sizes.append(len(x)) or fp.ExactLogDet()(branch, x, noise)
        with torch.no_grad():
            transform(torch.randn(10, 3))
            assert sizes == [4, 4, 2]
            transform.inverse(torch.randn(2, 5, 3))
            assert sizes == 2 * [4, 4, 2]
        transform(torch.randn(10, 3))
        assert sizes[-1] == 10

    @pytest.mark.parametrize(
        ("g", "logdet", "numbers"),
        [
            (lambda: small_mlp(), fp.ExactLogDet(), 9),
            (lambda: small_mlp(), fp.Krylov(), 8),
            (lambda: fp.LipschitzMLP(20, (4,)), fp.Krylov(), 20),
            (lambda: fp.LipschitzMLP(20, (4,)), None, 20),
            (lambda: fp.LipschitzMLP(20, (18, 19)), None, 18 * 18),
            (lambda: fp.LipschitzCNN(2, (5,)), fp.Krylov(), 5 * 6 * 7),
            (lambda: Scale(0.5), fp.ExactLogDet(), 9),
        ],
    )
    def test_memory_is_that_of_the_largest_tensor(self, g, logdet, numbers, monkeypatch):
        sizes, transform = [], fp.ResidualTransform(g(), eval_logdet=logdet, chunk_size=3 * numbers + 1).eval()
        kept = fp.Branch.piece
        monkeypatch.setattr(
            fp.Branch, "piece", lambda branch, index: sizes.append(index.stop - index.start) or kept(branch, index)
        )
        shape = (2, 6, 7) if transform.event_dim == 3 else (transform.event_shape or (3,))[:1]
        with torch.no_grad():
            transform(torch.randn(9, *shape))
        assert sizes == [3, 3, 3]

    def test_noise_is_that_of_the_row_and_not_of_the_piece(self):
        transform, x = fp.ResidualTransform(fp.LipschitzMLP(300, (300,))).eval(), torch.randn(3, 300)
        transform.chunk_size = 1
        with torch.no_grad():
            ladj = transform(x.repeat(2, 1))[1]
        assert torch.equal(ladj[:3], ladj[3:])
        assert len(ladj.unique()) == 3

    def test_bad_size(self):
        with pytest.raises(ValueError, match=r"chunk_size=...\) must be at least 1; got 0"):
            fp.ResidualTransform(small_mlp(), chunk_size=0)


def test_small_branch_is_inverted_through_a_dropped_context():
    transform = fp.ResidualTransform(small_mlp())
    y = torch.randn(4, 3)
    assert torch.equal(transform.inverse(y, torch.randn(9))[0], transform.inverse(y)[0])


@pytest.mark.slow
@pytest.mark.parametrize("logdet", [fp.ExactLogDet(), fp.Krylov(terms=fp.Truncated(3)), fp.Krylov()])
@pytest.mark.usefixtures("users_defaults")
@pytest.mark.filterwarnings("ignore")  # those of dynamo about what it traces
def test_compiled_block_gives_the_same_numbers(logdet):
    torch._dynamo.reset()
    transform = fp.ResidualTransform(fp.LipschitzMLP(5, (16,)), logdet=logdet)
    compiled = torch.compile(transform, backend="aot_eager")
    x, results = torch.randn(32, 5), []
    for call in (transform, compiled):
        torch.manual_seed(0)
        transform.zero_grad(set_to_none=True)
        y, ladj = call(x)
        (y.square().sum() - ladj.sum()).backward()
        results.append([y.detach(), ladj.detach(), *(p.grad for p in transform.parameters())])
    assert_all_close(results[1], results[0], 1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("users_defaults")
@pytest.mark.filterwarnings("ignore")  # those of dynamo about what it traces
def test_roulette_breaks_no_compiled_graph():
    counts = []
    for logdet in (fp.Krylov(terms=fp.Truncated(2)), fp.Krylov()):
        torch._dynamo.reset()
        transform = fp.ResidualTransform(fp.LipschitzMLP(5, (16,)), logdet=logdet)
        counts.append(torch._dynamo.explain(transform)(torch.randn(512, 5)).graph_break_count)
    assert counts[1] == counts[0]


@pytest.mark.parametrize("logdet", [fp.ExactLogDet(), fp.Krylov(terms=fp.Truncated(3))])
def test_torch_func_grad(logdet, eps):
    transform = fp.ResidualTransform(fp.LipschitzMLP(5, (16,)), logdet=logdet)
    x, parameters = torch.randn(8, 5), dict(transform.named_parameters())

    def loss(parameters):
        with fp.fixed_noise(0):
            return torch.func.functional_call(transform, parameters, (x,))[1].sum()

    got = torch.func.grad(loss)({name: p.detach() for name, p in parameters.items()})
    wanted = torch.autograd.grad(loss(parameters), list(parameters.values()), allow_unused=True, materialize_grads=True)
    assert_all_close(got.values(), wanted, 100 * eps)
