"""Dense transforms: cached inverses, whitening by data, autocast."""

import copy
import math

import pytest
import torch

import flowplug as fp
from helpers import told


class TestInverse:
    def check(self, transform, call=None):
        x = torch.randn(5, 3)
        with torch.no_grad():
            y, ladj = (call or transform)(x)
            back, inverse_ladj = transform.inverse(y) if call is None else call.inverse(y)
        torch.testing.assert_close(back, x, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(inverse_ladj, -ladj, atol=1e-4, rtol=1e-4)

    def test_follows_every_change_of_the_weights(self):
        transform = fp.DenseTransform(3)
        self.check(transform)
        y, ladj = transform(torch.randn(5, 3))
        (y.square().sum() - ladj.sum()).backward()
        torch.optim.SGD(transform.parameters(), 0.1).step()
        self.check(transform)
        transform.load_state_dict(fp.DenseTransform(3).state_dict())
        self.check(transform)
        twin = copy.deepcopy(transform)
        with torch.no_grad():
            twin.weight.mul_(2)
        self.check(twin)
        self.check(transform)
        # A copy counts the changes of its weights anew, so that some number of them meets the count of the original.
        for changes in range(12):
            twin = copy.deepcopy(transform)
            with torch.no_grad():
                for _ in range(changes):
                    twin.weight.mul_(1.1)
            self.check(twin)

    def test_functional_call(self, eps):
        transform, other = fp.DenseTransform(3), fp.DenseTransform(3)
        y = torch.randn(5, 3)
        with torch.no_grad():
            own = transform.inverse(y)[0]
            called = torch.func.functional_call(
                fp.InverseTransform(transform), {f"transform.{k}": v for k, v in other.state_dict().items()}, (y,)
            )[0]
            torch.testing.assert_close(called, other.inverse(y)[0], atol=100 * eps, rtol=0)
            assert torch.equal(transform.inverse(y)[0], own)

    def test_factors_are_reused(self, monkeypatch):
        transform, calls, factor = fp.DenseTransform(3), [], torch.linalg.lu_factor_ex
        monkeypatch.setattr(torch.linalg, "lu_factor_ex", lambda w: calls.append(1) or factor(w))
        for _ in range(3):
            transform.inverse(torch.randn(5, 3))
        assert len(calls) == 1

    def test_singular_matrices(self):
        transform = fp.DenseTransform(3)
        with torch.no_grad():
            transform.weight[0] = transform.weight[1]
        with pytest.raises(fp.SingularMatrixError, match=r"singular to working precision: its condition number is inf"):
            transform.inverse(torch.randn(5, 3))
        with torch.no_grad():
            transform.weight.zero_()
        with pytest.raises(fp.SingularMatrixError, match=r"log\|det W\| = -inf|in the last pass"):
            told(lambda: transform(torch.randn(5, 3)))
        with pytest.raises(fp.SingularMatrixError, match=r"log\|det W\| = -inf"):
            transform.eval()(torch.randn(5, 3))

    @pytest.mark.parametrize("decades", [0.5, 1.5])
    def test_a_solution_without_digits_is_refused(self, decades, eps):
        """Scales that differ by 1 / eps, less and more half a decade: the estimate is within a factor of 3."""
        transform = fp.DenseTransform(20, activation=None)
        left, right = (torch.linalg.qr(torch.randn(20, 20)).Q for _ in range(2))
        scales = torch.logspace(0, math.log10(eps) + 1 - decades, 20)
        with torch.no_grad():
            transform.weight.copy_(left * scales @ right)
        if decades < 1:
            transform.inverse(torch.randn(5, 20))
        else:
            with pytest.raises(fp.SingularMatrixError, match=r"its condition number is [\d.]+e\+\d+"):
                transform.inverse(torch.randn(5, 20))


class TestWhiten:
    @pytest.mark.parametrize(
        ("transform", "x", "dims"),
        [
            (lambda: fp.DenseTransform(3, activation=None), (500, 3), (0,)),
            (lambda: fp.DenseTransform(3, activation=None), (10, 50, 3), (0, 1)),
            (lambda: fp.DenseConv1x1(3, activation=None), (20, 3, 5, 5), (0, 2, 3)),
        ],
    )
    def test_whitening(self, transform, x, dims):
        transform = transform()
        mixing = torch.randn(3, 3)
        channels = transform.event_dim * -1
        x = (torch.randn(x).movedim(channels, -1) @ mixing + 5).movedim(-1, channels)
        transform.whiten(x, shrinkage=0.0)
        y = transform(x)[0].detach().movedim(channels, -1).reshape(-1, 3)
        torch.testing.assert_close(y.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
        torch.testing.assert_close(y.T @ y / len(y), torch.eye(3), atol=1e-3, rtol=0)

    def test_whitening_where_data_do_not_vary(self):
        transform, x = fp.DenseTransform(3, activation=None), torch.randn(100, 3)
        x[:, 2] = 4.0
        transform.whiten(x)
        y = transform(x)[0].detach()
        torch.testing.assert_close(y.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=0.1, rtol=0)
        torch.testing.assert_close(y.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
        assert float(transform.weight[2, 2].detach()) == pytest.approx(1.0, rel=1e-3)

    @pytest.mark.parametrize("units", [(1e-30, 1e-30), (1e30, 1e30), (1e-12, 1e12), (1.0, 1000.0)])
    def test_whitening_in_any_units(self, units):
        transform, x = (
            fp.DenseTransform(2, activation=None),
            torch.randn(500, 2) @ torch.tensor([[1.0, 0.5], [0.0, 1.0]]),
        )
        x = x * torch.tensor(units)
        transform.whiten(x, shrinkage=0.0)
        y = transform(x)[0].detach()
        torch.testing.assert_close(y.T @ y / len(y), torch.eye(2), atol=1e-3, rtol=0)

    @pytest.mark.parametrize("shrinkage", [None, 0.0])
    def test_whitening_by_few_rows_is_near_a_change_of_scale(self, shrinkage):
        transform, few = fp.DenseTransform(10, activation=None), torch.randn(5, 10)
        if shrinkage is None:
            transform.whiten(few)
            assert float(torch.linalg.cond(transform.weight.detach() * few.std(0))) < 2
        else:
            with pytest.raises(fp.SingularMatrixError, match="pass a shrinkage above 0, or more rows"):
                transform.whiten(few, shrinkage)

    def test_whitening_refuses(self):
        with pytest.raises(fp.ShapeError, match="two rows or more; got bias=True and 1 rows"):
            fp.DenseTransform(3).whiten(torch.randn(1, 3))
        with pytest.raises(ValueError, match=r"must be a share, from 0 to 1; got 1\.5"):
            fp.DenseTransform(3).whiten(torch.randn(9, 3), 1.5)
        with pytest.raises(fp.ShapeError, match="needs a transform with bias"):
            fp.DenseTransform(3, bias=False).whiten(torch.randn(9, 3))
        with pytest.raises(fp.ShapeError, match=r"expects inputs \(\*batch, \*event\) with event \(3,\)"):
            fp.DenseTransform(3).whiten(torch.randn(9, 4))


@pytest.mark.usefixtures("users_defaults")
@pytest.mark.parametrize("gradient", [fp.Relative(), fp.TransposedRelative(), fp.Euclidean()])
@pytest.mark.parametrize(
    ("make", "event"),
    [
        (lambda gradient: fp.DenseTransform(3, gradient=gradient), (3,)),
        (lambda gradient: fp.CircularConv2d(3, gradient=gradient), (3, 5, 5)),
    ],
)
def test_autocast(make, event, gradient):
    """Products in bfloat16, with its 8 bits; results and gradients in float32, log-dets without loss."""
    transform, x, found = make(gradient), torch.randn(64, *event), []
    for enabled in (False, True):
        transform.zero_grad()
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=enabled):
            y, ladj = transform(x)
        assert y.dtype == ladj.dtype == torch.float32
        (y.square().flatten(1).sum(1) - ladj).mean().backward()
        found.append((y.detach(), transform.weight.grad.clone(), transform.bias.grad.clone()))
    for exact, lowered in zip(*found, strict=True):
        assert lowered.dtype == torch.float32
        assert 0 < float((exact - lowered).abs().max()) < 0.05 * float(exact.abs().max()) + 0.02


def test_no_features():
    with pytest.raises(ValueError, match="DenseTransform needs positive sizes; got features=0"):
        fp.DenseTransform(0)
