"""Every known way of writing parameters, many of which leave version counters and objects as they were.

Each is given a module and the values to write, a whole ``state_dict``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel

Route = Callable[[nn.Module, dict[str, Tensor]], None]


def _optimizer(module: nn.Module, values: dict[str, Tensor], *, make: Callable[..., torch.optim.Optimizer]) -> None:
    for name, parameter in module.named_parameters():
        parameter.grad = parameter.detach() - values[name]
    make(module.parameters(), lr=0.1).step()
    module.zero_grad(set_to_none=True)


def _data(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        parameter.data.copy_(values[name])


def _data_replaced(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        parameter.data = values[name].clone()


def _in_place(module: nn.Module, values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(values[name])


def _vector(module: nn.Module, values: dict[str, Tensor]) -> None:
    parameters = list(module.parameters())
    vector_to_parameters(parameters_to_vector(values[name] for name, _ in module.named_parameters()), parameters)


def _numpy(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        if not parameter.is_cuda:
            parameter.detach().numpy()[...] = values[name].numpy()


def _dlpack(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        torch.utils.dlpack.from_dlpack(parameter.detach()).copy_(values[name])


def _swap(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        torch.utils.swap_tensors(parameter, nn.Parameter(values[name].clone()))  # type: ignore[no-untyped-call]


def _load(module: nn.Module, values: dict[str, Tensor], *, assign: bool) -> None:
    module.load_state_dict(values, assign=assign)


def _average(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Half way, by an average that holds the module itself."""
    average = AveragedModel(module)
    average.module = module
    average.n_averaged.fill_(1)
    source = AveragedModel(module)
    _in_place(source.module, values)
    average.update_parameters(source.module)


# These write buffers, too.
LOADS: dict[str, Route] = {
    "load_state_dict": partial(_load, assign=False),
    "load_state_dict(assign=True)": partial(_load, assign=True),
}

ROUTES: dict[str, Route] = {
    **LOADS,
    "in place": _in_place,
    "fused Adam": partial(_optimizer, make=partial(torch.optim.Adam, fused=True)),
    "foreach Adam": partial(_optimizer, make=partial(torch.optim.Adam, foreach=True)),
    "fused SGD": partial(_optimizer, make=partial(torch.optim.SGD, fused=True)),
    ".data": _data,
    ".data replaced": _data_replaced,
    "vector_to_parameters": _vector,
    "a NumPy view": _numpy,
    "a DLPack view": _dlpack,
    "swap_tensors": _swap,
    "averaging": _average,
}
