"""Products that torch rounds to 10 bits where it is told to, as GPUs do: bounds, starts and inverses are exact."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import flowplug as fp
from cases import ADAPTERS, CORE
from flowplug._precision import full_precision

aten = torch.ops.aten
FACTORS = {
    aten.mm.default: (0, 1),
    aten.mv.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.addmv.default: (1, 2),
    aten.baddbmm.default: (1, 2),
    aten.convolution.default: (0, 1),
}
NEW = hasattr(torch.backends.cudnn, "conv")
pytestmark = pytest.mark.skipif(
    not NEW, reason="before torch 2.9 a CPU has no such switch, which stands for a GPU here"
)


class Rounded(TorchDispatchMode):
    """A CPU that does as it is told, without having the units for it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        args = list(args)
        part = torch.backends.mkldnn.conv if function is aten.convolution.default else torch.backends.mkldnn.matmul
        for number in FACTORS.get(function, ()) if part.fp32_precision == "tf32" else ():
            if args[number].dtype != torch.float32:
                continue
            bits = args[number].contiguous().view(torch.int32)
            args[number] = ((bits + 0x1000) & ~0x1FFF).view(torch.float32).reshape(args[number].shape)
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _single(users_defaults):
    del users_defaults


PARTS = (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv) if NEW else ()


def older():
    torch.set_float32_matmul_precision("high")


def newer():
    for part in PARTS:
        part.fp32_precision = "tf32"


def told():
    try:
        first = torch.get_float32_matmul_precision()
    except RuntimeError:  # where the newer switches are used
        first = None
    return [first, *(part.fp32_precision for part in PARTS)]


@pytest.fixture(params=[older, newer])
def rounded(request):
    """A context in which products are rounded; what torch was told is still told after it."""
    before = told()

    @contextlib.contextmanager
    def context():
        request.param()
        inside = told()
        try:
            with Rounded():
                yield
            assert told() == inside
        finally:
            torch.set_float32_matmul_precision(before[0])
            for part, value in zip(PARTS, before[1:], strict=True):
                part.fp32_precision = value

    return context


ROWS = {**CORE, **ADAPTERS}
MAKES = {
    "residual": lambda: fp.ResidualTransform(fp.LipschitzMLP(6, (64, 64), zero_last=False)),
    "Gram": lambda: fp.ResidualTransform(fp.LipschitzMLP(6, (16,), norm=fp.Gram(), zero_last=False)),
    "images": lambda: fp.ResidualTransform(fp.LipschitzCNN(2, (8,), zero_last=False), event_dim=3),
    "whitening": lambda: fp.Whitening(6),
}


def made(name):
    torch.manual_seed(1)
    transform = MAKES[name]()
    size = (2, 5, 5) if name == "images" else (6,)
    return transform, torch.randn(200, *size) + 1


def test_products_are_rounded_here(rounded):
    a = torch.rand(9, 9)
    with rounded():
        product = a @ a
    assert 1e-5 < float((product - a @ a).abs().max()) < 1e-1


def test_switches_agree_inside(rounded):
    with rounded(), full_precision(torch.zeros(1)):
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"


@pytest.mark.filterwarnings("ignore")  # of starts and bounds
@pytest.mark.parametrize("name", ROWS)
def test_inverses_are_exact(name, rounded):
    """Those of hosts' whole flows, by which they sample, too."""
    row = ROWS[name]
    transform = row.make()
    transform(*row.inputs(300))
    with torch.no_grad():
        for parameter in transform.eval().parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        x, context = row.inputs()
        y, _ = transform(x, context)
        wanted, _ = transform.inverse(y, context)
        with rounded():
            got, _ = transform.inverse(y, context)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_starts_are_exact(rounded):
    whitening, x = made("whitening")
    whitening(x)
    with rounded():
        twin, _ = made("whitening")
        y, _ = twin(x)
    torch.testing.assert_close(twin.state_dict(), whitening.state_dict())
    torch.testing.assert_close(y, whitening(x)[0])


@pytest.mark.parametrize("name", ["residual", "Gram", "images"])
def test_bounds_are_exact(name, rounded):
    transform, _ = made(name)
    wanted = float(transform.lipschitz)
    with rounded():
        assert float(transform.lipschitz) == pytest.approx(wanted, rel=1e-6)
    assert float(transform.lipschitz) == pytest.approx(wanted, rel=1e-6)


def test_gradients_through_inverses_are_exact(rounded):
    transform, x = made("residual")

    def gradient():
        y = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(transform.inverse(y)[0].square().sum(), y)
        return found

    wanted = gradient()
    with rounded():
        torch.testing.assert_close(gradient(), wanted, rtol=2e-3, atol=2e-3)
