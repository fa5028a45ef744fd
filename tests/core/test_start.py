"""Starts from data: in any units, from few rows, by name, and undone; said aloud when something is lost."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import flowplug as fp
from flowplug import hosts

PARTS = [fp.ActNorm, fp.Whitening]
EACH = pytest.mark.parametrize("make", PARTS)
AVERAGES = [{}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}, {"avg_fn": get_ema_avg_fn(0.9)}]


def data(rows, features=4):
    return 5 + torch.randn(rows, features) @ (torch.eye(features) + 0.1 * torch.randn(features, features))


def standard(y, atol=0.2):
    torch.testing.assert_close(y.detach().mean(0), torch.zeros(y.shape[1]), atol=atol, rtol=0)
    torch.testing.assert_close(y.detach().std(0), torch.ones(y.shape[1]), atol=atol, rtol=0)


def both(features):
    return fp.ComposedTransform(*(part(features) for part in PARTS))


class TestUnits:
    @EACH
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(
        "units", [(1e-30, 1e-30), (1e-12, 1e-12), (1e10, 1e10), (1e30, 1e30), (1.0, 1000.0), (1e-12, 1e12)]
    )
    def test_any(self, make, dtype, units):
        units = torch.tensor(units, dtype=torch.float64)
        x = ((torch.randn(500, 2, dtype=torch.float64) @ torch.tensor([[1.0, 0.8], [0, 1.0]]).double()) * units).to(
            dtype
        )
        part = make(2).to(dtype)
        y, ladj = part(x)
        standard(y.double().to(torch.get_default_dtype()), 0.01)
        back, inverse_ladj = part.inverse(y)
        units, few = units.to(dtype), 100 * torch.finfo(dtype).eps
        torch.testing.assert_close(back / units, x / units, atol=few, rtol=few)
        torch.testing.assert_close(inverse_ladj, -ladj)
        plain = make(2).to(dtype)
        torch.testing.assert_close(ladj, plain(x / units)[1] - units.log().sum(), atol=0.01, rtol=0)

    @EACH
    @pytest.mark.parametrize("rows", [[200], [40, 160], [1, 199], [30, 3, 167]])
    def test_merging_in_any(self, make, rows):
        x = data(200, 3) * torch.tensor([1e-25, 1.0, 1e25])
        part, whole = make(3), make(3)
        for batch in x.split(rows):
            part(batch)
        whole(x)
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(part.state_dict()[name], value, rtol=1e-4, atol=0)

    @EACH
    @pytest.mark.usefixtures("users_defaults")
    def test_large_offset(self, make):
        standard(make(3)(1e6 + torch.randn(500, 3))[0], 0.05)

    @EACH
    def test_near_duplicates_and_constants(self, make, eps):
        column = torch.randn(5000, 1)
        x = torch.cat([column, column + 4.5e-5 * torch.randn(5000, 1), torch.full((5000, 1), 1e6 / 3)], 1)
        part = make(3)
        y, ladj = part(x)
        assert bool(y.isfinite().all())
        assert bool(ladj.isfinite().all())
        assert float(y.detach()[:, 2].abs().max()) <= 1e6 * eps
        torch.testing.assert_close(part.inverse(y)[0], x, atol=1e5 * eps, rtol=1e5 * eps)


class TestFewRows:
    @EACH
    @pytest.mark.parametrize("rows", [1, 2, 16])
    def test_the_next_batches_make_up_for_them(self, make, rows):
        part, x = make(4), data(500)
        part(100 * x[:rows] if rows == 1 else x[:rows])
        assert 0 < part.started < 1
        part(x[rows:])
        assert part.started == 1
        if rows > 1:
            standard(part(x)[0])

    @EACH
    def test_the_batch_counts_before_it_is_mapped(self, make):
        part, x = make(4), data(40)
        with pytest.warns(fp.StartWarning):
            standard(part(x)[0], 0.4)

    @EACH
    def test_each_batch_is_told_once_with_the_way_out(self, make):
        part, x = make(4), data(10)
        with pytest.warns(fp.StartWarning, match=rf"{make.__name__} has met 10 of the 64 rows .* call start\(x\)"):
            part(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            part(x)
            part(data(64))

    def test_rows_that_whitening_takes_grow_with_the_features(self):
        assert [fp.Whitening(features).rows_needed for features in (1, 32, 100)] == [64, 64, 200]

    def test_two_rows_are_near_a_change_of_scale(self):
        whitening, x = fp.Whitening(10), data(2, 10)
        whitening(x)
        assert float(torch.linalg.cond(whitening.weight * x.std(0, correction=0)[:, None])) < 2.5

    @pytest.mark.parametrize("factors", [True, False], ids=["kept factors", "as on a GPU"])
    def test_graphs_outlive_the_next_batch(self, factors, monkeypatch):
        if not factors:
            monkeypatch.setattr(fp.Whitening, "_kept_factors", lambda _: None)
        stack, x = fp.ResidualStack(4, 1, (8,)), data(30)
        losses = [stack(x[:9])[0].sum(), stack(x[9:])[0].sum(), stack.inverse(x)[0].sum(), stack(x)[0].sum()]
        sum(losses).backward()

    @EACH
    def test_nan_is_refused_before_it_is_taken_in(self, make, monkeypatch):
        monkeypatch.setattr("flowplug._transform._check_tensor", lambda *_, **__: None)  # as in training on a GPU
        part, x = make(4), data(100)
        before = {name: value.clone() for name, value in part.state_dict().items()}
        x[2, 1] = torch.nan
        with pytest.raises(fp.NonFiniteError, match=r"1 NaN or infinite value\(s\), the first at index \(2, 1\)"):
            part(x)
        assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())

    @EACH
    def test_sums_that_overflow_are_refused(self, make):
        part, x = make(4), data(100)
        before = {name: value.clone() for name, value in part.state_dict().items()}
        with pytest.raises(fp.NonFiniteError, match=r"sums of the input overflow in torch\.float\d+: rescale"):
            part(torch.finfo(x.dtype).max / 100 * x)
        assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())

    def test_images_count_as_rows(self):
        norm, x = fp.ActNorm(2, event_dim=3), 5 + 3 * torch.randn(70, 2, 4, 4)
        norm(x[:1])
        assert norm.started == 1 / 64
        assert torch.equal(norm.std, torch.ones(2))
        norm(x[1:])
        values = norm(x)[0].detach().movedim(1, 0).flatten(1)
        torch.testing.assert_close(values.std(1, correction=0), torch.ones(2), atol=1e-3, rtol=0)

    @pytest.mark.slow
    @pytest.mark.usefixtures("users_defaults")
    def test_a_first_call_with_two_rows_does_not_ruin_a_flow(self):
        x, found = torch.randn(1500, 10) @ torch.randn(10, 10), []
        for rows in (0, 2, 64):
            torch.manual_seed(1)
            stack = fp.ResidualStack(10, 3, (32,))
            if rows:
                stack(x[:rows])
            optimizer = torch.optim.Adam(stack.parameters(), 1e-3)
            for _ in range(30):
                y, ladj = stack(x[torch.randint(1000, (256,))])
                optimizer.zero_grad()
                (y.square().sum(1) / 2 - ladj).mean().backward()
                optimizer.step()
            with torch.no_grad():
                y, ladj = stack.eval()(x[1000:])
                found.append(float((y.square().sum(1) / 2 - ladj).mean()))
        assert max(found) - min(found) < 2


class TestByName:
    @EACH
    @pytest.mark.parametrize("training", [True, False])
    def test_starts_anew_in_any_mode(self, make, training):
        part = make(4)
        part(100 * data(200))
        for parameter in part.parameters():
            nn.init.ones_(parameter)
        part.train(training)
        x = data(200)
        part.start(x)
        assert part.training == training
        standard(part(x)[0])
        kept = copy.deepcopy(part.state_dict())
        part.train()(7 * x)
        assert all(torch.equal(kept[name], value) for name, value in part.state_dict().items())

    def test_each_part_sees_what_those_before_it_make_of_the_rows(self):
        flow = fp.ComposedTransform(
            fp.ActNorm(4), fp.ComposedTransform(fp.DenseTransform(4), fp.Whitening(4)), fp.ActNorm(4)
        ).eval()
        weight, x = flow.transforms[1].transforms[0].weight.detach().clone(), 1e9 * data(500)
        flow.start(x)
        standard(flow(x)[0], 2e-3)
        standard(flow.transforms[0](x)[0], 2e-3)
        assert torch.equal(flow.transforms[1].transforms[0].weight, weight)

    def test_a_part_that_occurs_twice_starts_once(self):
        norm, x = fp.ActNorm(4), data(200)
        fp.ComposedTransform(norm, norm).start(x)
        standard(norm(x)[0], 0.01)

    def test_what_runs_backwards_stays_and_says_nothing(self):
        flow, x = fp.InverseTransform(fp.ActNorm(4)), data(200)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            flow.start(x)
            assert torch.equal(flow(x)[0], x)

    @EACH
    def test_too_few_rows(self, make):
        part = make(4)
        for rows in (0, 1):
            with pytest.raises(
                fp.ShapeError, match=f"{make.__name__}: a start takes at least 2 rows of data; got {rows}"
            ):
                part.start(data(2)[:rows])
        assert part.started == 0
        part(data(200))
        assert part.started == 1

    @EACH
    @pytest.mark.parametrize("undo", [lambda part: part.reset(), lambda part: hosts.reset(nn.ModuleList([part]))])
    def test_reset(self, make, undo):
        part = make(4)
        fresh = copy.deepcopy(part.state_dict())
        part.start(data(200))
        undo(part)
        assert all(torch.equal(fresh[name], value) for name, value in part.state_dict().items())
        x = data(200)
        standard(part(x)[0])

    def test_stays_out_of_the_log_det(self):
        class Costly(fp.LogDet if isinstance(fp.LogDet, type) else object):
            def __call__(self, branch, x, noise):
                raise AssertionError("a start needs no log-det")

        flow = fp.ComposedTransform(
            fp.ActNorm(4), fp.ResidualTransform(fp.LipschitzMLP(4), logdet=Costly()), fp.ActNorm(4)
        )
        flow.start(data(200))
        assert all(part.started == 1 for part in (flow.transforms[0], flow.transforms[2]))


class TestInverseFirst:
    @EACH
    def test_uses_up_the_start_and_says_so(self, make):
        part, y = make(4), data(200)
        with pytest.warns(fp.StartWarning, match=rf"{make.__name__} was inverted in train mode.*start\(x\).*eval mode"):
            x, _ = part.inverse(y)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            part.inverse(y)
            torch.testing.assert_close(part(x)[0], y)
        part.start(100 * y)
        standard(part(100 * y)[0])

    @EACH
    def test_a_start_that_has_begun_goes_on(self, make):
        part, x = make(4), data(200)
        part(x[:2])
        part.inverse(x)
        part(x[2:])
        standard(part(x)[0])

    @EACH
    def test_sampling_without_a_graph_or_in_eval_mode_is_free(self, make):
        part, x = make(4), data(200)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with torch.no_grad():
                part.inverse(x)
            part.eval().inverse(x)
            standard(part.train()(x)[0])


class TestRunning:
    @pytest.mark.parametrize("options", AVERAGES)
    @pytest.mark.parametrize("make", [*PARTS, both])
    def test_averages_of_buffers(self, make, options, eps):
        model, x = make(4), data(200)
        average = AveragedModel(model, use_buffers=True, **options).eval()
        for scale in (1, 3, 7):
            average.update_parameters(model)  # before the start, too
            model.start(scale * x)
        average.update_parameters(model)
        with torch.no_grad():
            y, ladj = average(x)
            back, inverse_ladj = average.module.inverse(y)
        jacobian = torch.autograd.functional.jacobian(lambda v: average(v)[0], x[0])
        torch.testing.assert_close(ladj[0], torch.linalg.slogdet(jacobian).logabsdet, atol=1e3 * eps, rtol=0)
        torch.testing.assert_close(inverse_ladj, -ladj, atol=1e3 * eps, rtol=0)
        torch.testing.assert_close(back, x, atol=1e4 * eps, rtol=0)

    @EACH
    def test_copies_and_states(self, make):
        part, x = make(4), data(200)
        wanted = part(x)[0]
        with torch.device("meta"):
            assigned = make(4)
        assigned.load_state_dict(part.state_dict(), assign=True)
        loaded = make(4)
        loaded.load_state_dict(part.state_dict())
        for other in (assigned.to(x.device), loaded, copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
            other(7 * x)
            assert torch.equal(other(x)[0], wanted)
        halves = part.double().to(torch.get_default_dtype())
        halves(7 * x)
        torch.testing.assert_close(halves(x)[0], wanted)

    @EACH
    def test_a_start_that_was_saved_half_way_goes_on(self, make):
        part, other, x = make(4), make(4), data(200)
        part(x[:30])
        other.load_state_dict(part.state_dict())
        part(x[30:])
        other(x[30:])
        assert all(torch.equal(part.state_dict()[name], value) for name, value in other.state_dict().items())

    @EACH
    def test_loading_what_has_not_started_starts_again(self, make):
        part, fresh = make(4), make(4)
        part(data(200))
        part.load_state_dict(fresh.state_dict())
        x = data(200)
        standard(part(x)[0])

    @EACH
    def test_inference_mode(self, make):
        part, x = make(4), data(200)
        with torch.inference_mode():
            part(x)
        y, ladj = part(x.clone().requires_grad_())
        (y.sum() + ladj.sum() + part.inverse(y)[0].sum()).backward()
        standard(y)

    @EACH
    def test_inside_torch_func(self, make):
        part, x = make(4), data(200)
        buffers = {name: value.clone() for name, value in part.named_buffers()}
        state = {**dict(part.named_parameters()), **buffers}
        standard(torch.func.functional_call(part, state, (x,))[0])
        assert part.started == 0
        assert state["started"] == 1
        with pytest.warns(fp.StartWarning, match="cannot start from data inside a transform of torch.func"):
            torch.func.grad(lambda x: part(x)[0].square().sum())(x)
        assert part.started == 0
        standard(part(x)[0])

    @EACH
    @pytest.mark.parametrize("reentrant", [True, False])
    def test_checkpointing_counts_rows_once(self, make, reentrant):
        part, plain, x = make(4), make(4), data(20).requires_grad_()
        y, _ = checkpoint(part, x, use_reentrant=reentrant)
        y.square().sum().backward()
        gradient, x.grad = x.grad, None
        plain(x)[0].square().sum().backward()
        assert all(torch.equal(part.state_dict()[name], value) for name, value in plain.state_dict().items())
        torch.testing.assert_close(gradient, x.grad)

    @EACH
    @pytest.mark.usefixtures("users_defaults")
    def test_autocast(self, make):
        part, plain, x = make(4), make(4), 1e3 + data(200)
        plain(x)
        with torch.autocast("cpu", torch.bfloat16):
            part(x)
        assert all(torch.equal(part.state_dict()[name], value) for name, value in plain.state_dict().items())

    @EACH
    @pytest.mark.slow
    def test_compiled_no_break_but_for_the_checks(self, make):
        part, x = make(4), data(200)
        part(x)
        torch.compiler.reset()
        assert torch._dynamo.explain(part)(x).graph_break_count <= 1
        compiled = torch.compile(part, backend="eager")
        torch.testing.assert_close(compiled(x), part(x))
        again = make(4)
        torch.compile(again, backend="eager")(x)
        assert all(torch.equal(part.state_dict()[name], value) for name, value in again.state_dict().items())
