"""The logit: its formula, its domain, and what happens where the sigmoid is rounded to an end."""

import math

import pytest
import torch
from torch.nn import functional

import flowplug as fp
from helpers import ASSERTS, told

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
FAR = [-100.0, -50.0, -20.0, -10.0, -3.0, 0.0, 3.0, 10.0, 20.0, 50.0, 100.0]


@pytest.mark.parametrize("alpha", [0, 1e-6, 0.05, 0.3])
def test_is_the_logit_of_the_shrunk_interval(alpha, eps):
    x = torch.rand(5, 2, 3, 4)
    y, ladj = fp.Logit(alpha)(x)
    shrunk = alpha + (1 - 2 * alpha) * x
    torch.testing.assert_close(y, torch.logit(shrunk), atol=100 * eps, rtol=100 * eps)
    slopes = (1 - 2 * alpha) / (shrunk * (1 - shrunk))
    torch.testing.assert_close(ladj, slopes.log().sum((1, 2, 3)), atol=1000 * eps, rtol=100 * eps)


def test_the_ends_of_the_data():
    y = fp.Logit(0.05, event_dim=1)(torch.tensor([[0.0, 1.0]]))[0]
    torch.testing.assert_close(y, torch.tensor([[-math.log(19), math.log(19)]]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [0, 1e-6, 0.05, 0.3])
class TestFarLatents:
    def test_come_back_as_far_as_the_numbers_go(self, alpha, dtype):
        logit, y = fp.Logit(alpha, event_dim=1), torch.tensor(FAR, dtype=dtype)[:, None]
        x, inverse_ladj = logit.inverse(y)
        again, ladj = logit(x)
        for found in (x, inverse_ladj, again, ladj):
            assert found.isfinite().all()
        assert (x.diff(dim=0) >= 0).all()
        assert (again.diff(dim=0) >= 0).all()
        # A step of x at a slope of the map.
        single = y.float() if dtype.itemsize == 2 else y
        step = torch.finfo(dtype).eps * (1 - 2 * alpha) / (torch.sigmoid(single) * torch.sigmoid(-single))
        near = (step < 0.1).flatten()
        assert near.sum() >= (1 if dtype.itemsize == 2 else 5)
        assert ((again - y).abs() <= 4 * step + 4 * torch.finfo(dtype).eps * (1 + y.abs()))[near].all()

    def test_have_the_log_det_of_the_formula(self, alpha, dtype):
        y = torch.tensor(FAR, dtype=dtype)[:, None]
        wanted = functional.logsigmoid(y.double()) + functional.logsigmoid(-y.double()) - math.log(1 - 2 * alpha)
        ladj = fp.Logit(alpha, event_dim=1).inverse(y)[1]
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(ladj.double(), wanted[:, 0], rtol=2 * eps, atol=4 * eps)

    def test_end_at_the_number_next_to_the_end(self, alpha, dtype):
        logit = fp.Logit(alpha, event_dim=1)
        ends = logit.inverse(torch.tensor([[-1e4], [1e4]], dtype=dtype))[0].flatten()
        outwards = torch.tensor([-math.inf, math.inf])
        for end, way, share in zip(ends, outwards, (0, 1), strict=True):
            # The next one outwards would have the logit of 0 or 1.
            numbers = torch.cat([end[None], _next(end, float(way))[None]]).double()
            if not (alpha == 0 and share == 0):  # there it is the smallest normal number
                numbers = numbers if dtype == torch.float64 else numbers.float()
            weights = alpha + (1 - 2 * alpha) * (numbers if share == 0 else 1 - numbers)
            assert weights[0] > 0
            assert weights[1] <= 0 or (alpha == 0 and share == 0)


def _next(x, way):
    """The next number of its dtype, of which torch has none in float16."""
    if x.dtype != torch.float16:
        return torch.nextafter(x, torch.tensor(way, dtype=x.dtype))
    away = (x > 0) == (way > 0)
    return (x.view(torch.int16) + (1 if away else -1)).view(torch.float16)


class TestDomain:
    @pytest.mark.parametrize("value", [255.0, -0.06, 1.06])
    @pytest.mark.parametrize("training", [True, False])
    def test_other_numbers_are_refused(self, value, training):
        x = torch.rand(4, 1, 2, 3)
        x[2, 0, 1, 2] = value
        message = rf"from -0\.0555556 to 1\.05556, data from 0 to 1; got 1 other .* at index \(2, 0, 1, 2\), {value:g}"
        logit = fp.Logit(0.05).train(training)
        with pytest.raises(fp.DomainError, match=f"{message}|the input of the last pass held others"):
            told(lambda: logit(x))
        assert issubclass(fp.DomainError, fp.FlowplugError)
        assert issubclass(fp.DomainError, ValueError)

    def test_ends_of_the_interval_are_taken(self):
        y, ladj = fp.Logit(0, event_dim=1)(torch.tensor([[0.0, 1.0]]))
        assert y.isfinite().all()
        assert ladj.isfinite().all()
        with pytest.raises(fp.DomainError, match=r"got 1 other value\(s\), the first at index \(0,\), -0\.001"):
            fp.Logit(0, event_dim=1).eval()(torch.tensor([-1e-3, 1.0]))

    @ASSERTS
    @pytest.mark.filterwarnings("ignore")  # those of the compiler about what it traces
    def test_other_numbers_are_refused_in_a_graph(self):
        torch.compiler.reset()
        call = torch.compile(fp.Logit(), backend="aot_eager", fullgraph=True)
        assert call(torch.rand(4, 1, 2, 3))[1].isfinite().all()
        with pytest.raises(RuntimeError, match=r"Logit\(alpha=0\.05\) is defined from"):
            call(2 * torch.ones(4, 1, 2, 3))

    @pytest.mark.parametrize(("alpha", "event_dim"), [(-0.1, 3), (0.5, 3), (math.nan, 3), (0.1, 0)])
    def test_arguments(self, alpha, event_dim):
        with pytest.raises(ValueError, match=r"Logit\((alpha|event_dim)=\.\.\.\) must be .*; got"):
            fp.Logit(alpha, event_dim=event_dim)
