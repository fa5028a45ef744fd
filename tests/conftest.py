"""Options and settings shared by all tests."""

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--device", choices=["cpu", "cuda"], default="cpu", help="device every test runs on")
    parser.addoption("--dtype", choices=["float32", "float64"], default="float64", help="dtype every test runs in")


def pytest_configure(config):
    choose_defaults(config)
    torch.backends.cudnn.allow_tf32 = False  # 10 bits in convolutions of float32
    # The tensors are tiny: more threads only wait for each other.
    torch.set_num_threads(1)


def choose_defaults(config):
    """Tests make their tensors and modules by torch's defaults."""
    device = config.getoption("--device")
    torch.set_default_device(None if device == "cpu" else device)
    torch.set_default_dtype(getattr(torch, config.getoption("--dtype")))


@pytest.fixture(autouse=True)
def _same_start(request):
    choose_defaults(request.config)
    torch.manual_seed(0)


@pytest.fixture
def users_defaults():
    """What a user who sets nothing has: single precision on the CPU."""
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def eps():
    """One unit of rounding of the dtype under test."""
    return torch.finfo(torch.get_default_dtype()).eps
