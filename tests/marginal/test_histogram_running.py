"""A histogram's start from data, what it says of data that do not fit, and what it keeps, however it runs."""

import copy
import warnings

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import flowplug as fp
from grid import grey, slopes, started


class TestStart:
    def test_batches_add_up_to_the_whole(self):
        x = grey(300)
        parts, whole = fp.HistogramGaussianization(4), fp.HistogramGaussianization(4)
        for batch in x.split([2, 1, 100, 197]):
            parts(batch)
        whole(x)
        assert all(torch.equal(parts.state_dict()[name], value) for name, value in whole.state_dict().items())
        parts(grey(300))
        assert torch.equal(parts.counts, whole.counts)

    def test_before_it_the_identity(self):
        transform, x = fp.HistogramGaussianization(4).eval(), 3 * torch.randn(9, 4)
        for y, ladj in (transform(x), transform.inverse(x)):
            assert torch.equal(y, x)
            assert not ladj.any()
        point = x.clone().requires_grad_()
        y, ladj = transform(point)
        (y.sum() + ladj.sum()).backward()
        assert torch.equal(point.grad, torch.ones(9, 4))

    def test_reset_undoes_it(self):
        transform = started()
        transform.reset()
        assert not transform.counts.any()
        assert not transform.initialized

    def test_training_that_starts_with_the_inverse_keeps_the_identity(self):
        transform, y = fp.HistogramGaussianization(4), torch.randn(9, 4)
        with pytest.warns(fp.StartWarning, match="was inverted in train mode"):
            transform.inverse(y)
        assert torch.equal(transform(y)[0], y)

    def test_one_row_is_lawful(self, eps):
        transform = fp.HistogramGaussianization(4)
        x = grey(1)
        transform(x)
        y, _ = transform.eval()(torch.rand(100, 4))
        assert bool((transform(transform.inverse(y)[0])[0] - y).abs().max() < 1000 * eps)

    def test_more_rows_than_half_precision_counts(self):
        transform, x = fp.HistogramGaussianization(1, levels=4), torch.rand(70000, 1).square()
        transform.start(x)
        assert float(transform.counts.sum()) == pytest.approx(65280, rel=1e-5)
        torch.testing.assert_close(
            (transform.counts / 65280).squeeze(0), torch.histc(x, 4, 0, 1) / 70000, atol=1e-6, rtol=0
        )
        transform.counts[0] = torch.tensor([65280, 0, 0, 0])
        assert bool(transform.bfloat16().half().counts.isfinite().all())

    @pytest.mark.parametrize("points", [lambda k: k / 256, lambda k: k / 255, lambda k: (k + 0.5) / 256])
    @pytest.mark.parametrize("way", ["start", "forward"])
    def test_data_without_noise_are_told(self, points, way):
        transform, k = fp.HistogramGaussianization(4), torch.randint(256, (300, 4)).to(torch.get_default_dtype())
        with pytest.warns(fp.StartWarning, match=r"not dequantised.*from 0 to 255, x = 0 \+ \(k \+ torch.rand"):
            (transform.start if way == "start" else transform)(points(k))

    def test_data_off_the_grid_are_told(self):
        with pytest.warns(fp.StartWarning, match="100% of the values lie outside of its grid, from 0 to 1"):
            fp.HistogramGaussianization(4).start(256 * grey(300)[:, 3:].expand(-1, 4))

    def test_good_data_are_not(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for levels in (2, 10, 256):
                fp.HistogramGaussianization(4, levels=levels)(grey(300, levels))


class TestRunning:
    def test_no_parameters_and_one_truth(self):
        transform = fp.HistogramGaussianization(4)
        assert not list(transform.parameters())
        assert set(transform.state_dict()) == {"started", "counts"}

    @pytest.mark.parametrize("write", ["data", "load", "a DLPack view", "swap"])
    def test_what_is_written_is_used(self, write):
        transform, other, x = started(), fp.HistogramGaussianization(4), torch.rand(50, 4)
        other.start(torch.rand(5000, 4).square())
        wanted = other.eval()(x)
        transform(x)  # fills what is kept
        transform.inverse(x)
        if write == "data":
            transform.counts.data.copy_(other.counts)
        elif write == "load":
            transform.load_state_dict(other.state_dict())
        elif write == "a DLPack view":
            torch.utils.dlpack.from_dlpack(transform.counts).copy_(other.counts)
        else:
            torch.utils.swap_tensors(transform.counts, other.counts.clone())
        torch.testing.assert_close(transform(x), wanted, rtol=0, atol=0)
        torch.testing.assert_close(transform.inverse(wanted[0]), other.inverse(wanted[0]), rtol=0, atol=0)

    @pytest.mark.parametrize("options", [{}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}])
    def test_averages_are_lawful(self, options, eps):
        model, x = fp.HistogramGaussianization(4, levels=16), torch.rand(50, 4)
        average = AveragedModel(model, use_buffers=True, **options).eval()
        average.update_parameters(model)  # before the start, too
        for power in (1, 2):
            model.start(grey(500, 16) ** power)
            average.update_parameters(model)
            y, ladj = average(x)
            back, inverse_ladj = average.module.inverse(y)
            torch.testing.assert_close(back, x, atol=1e3 * eps, rtol=0)
            torch.testing.assert_close(inverse_ladj, -ladj, atol=1e4 * eps, rtol=0)
            torch.testing.assert_close(
                slopes(average.module, x).log().sum(1), ladj.double(), atol=1e4 * eps, rtol=1e4 * eps
            )

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype):
        transform, x = started(), grey(2000)
        exact = copy.deepcopy(transform)
        transform = transform.to(dtype)
        y, ladj = transform(x.to(dtype))
        back, _ = transform.inverse(y)
        assert y.dtype == ladj.dtype == back.dtype == dtype
        assert bool(y.isfinite().all() & ladj.isfinite().all())
        # What is lost is the input's digits: the map itself is that of counts right to half a percent.
        wider = copy.deepcopy(transform).to(x.dtype)
        torch.testing.assert_close(wider(x)[0], exact(x)[0], atol=0.02, rtol=0)
        torch.testing.assert_close(back.to(x.dtype), x, atol=0.02, rtol=0)
        fresh = fp.HistogramGaussianization(4).to(dtype)
        for batch in x[:256].split(32):
            fresh(batch.to(dtype))
        assert float(fresh.counts.float().sum()) == 4 * 256  # no row is lost

    @pytest.mark.usefixtures("users_defaults")
    def test_autocast_costs_no_digits(self):
        transform, x = started(), grey(200)
        wanted = transform(x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(transform(x), wanted, rtol=0, atol=0)
            torch.testing.assert_close(transform.inverse(wanted[0])[0], transform.inverse(wanted[0])[0])
            assert transform(x.bfloat16())[0].dtype == torch.float32

    def test_ensembles_under_vmap(self):
        members = [started(rows=rows) for rows in (300, 500, 700)]
        _, buffers = torch.func.stack_module_state(members)
        x = torch.rand(5, 4)

        def run(buffers):
            return torch.func.functional_call(members[0], buffers, (x,))

        y, ladj = torch.vmap(run)(buffers)
        for index, member in enumerate(members):
            torch.testing.assert_close((y[index], ladj[index]), member(x))

    def test_a_start_inside_torch_func_is_refused(self):
        transform, x = fp.HistogramGaussianization(4), grey(300)
        for run in (
            lambda: torch.func.grad(lambda x: transform(x)[0].square().sum())(x),
            lambda: torch.vmap(lambda row: transform(row)[0])(x),
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", fp.StartWarning)  # rows are few on purpose
                run()
            assert transform.started == 0
            assert not transform.counts.any()

    def test_a_start_in_inference_mode(self):
        transform, x = fp.HistogramGaussianization(4), grey(300)
        with torch.inference_mode():
            transform(x)
        y, ladj = transform(x.clone().requires_grad_())
        (y.sum() + ladj.sum() + transform.inverse(y)[0].sum()).backward()
        assert float(transform.counts.sum()) == 1200

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_checkpointing_counts_rows_once(self, reentrant):
        transform, x = fp.HistogramGaussianization(4), grey(20).requires_grad_()
        checkpoint(transform, x, use_reentrant=reentrant)[0].sum().backward()
        assert float(transform.counts.sum()) == 80

    def test_graphs_outlive_the_next_batch(self):
        transform, x = fp.HistogramGaussianization(4), grey(300).requires_grad_()
        losses = [transform(x[:9])[0].sum(), transform(x[9:])[0].sum(), transform.inverse(x)[0].sum()]
        sum(losses).backward()

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore")  # those of the compiler about what it traces
    def test_exports_and_graphs_take_batches_of_any_size(self):
        transform, x = started(), torch.rand(9, 4)
        exported = torch.export.export(transform, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
        torch.compiler.reset()
        compiled = torch.compile(transform, backend="aot_eager", fullgraph=True)
        for rows in (9, 7, 20, 1):
            x = torch.rand(rows, 4)
            torch.testing.assert_close(compiled(x), transform(x))
            if rows > 1:
                torch.testing.assert_close(exported(x), transform(x))

    def test_in_front_of_a_whitening(self):
        flow, x = fp.ComposedTransform(fp.HistogramGaussianization(4), fp.Whitening(4)), grey(3000)
        flow.start(x)
        y, _ = flow(x)
        torch.testing.assert_close(y.T.cov(correction=0), torch.eye(4), atol=0.1, rtol=0)
