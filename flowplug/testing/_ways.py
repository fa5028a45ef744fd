"""The ways of running in which the laws are checked."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowplug._errors import VmapError
from flowplug.testing._case import EAGER, Case, InWay, Way, meet
from flowplug.testing._copies import averaged, deepcopied, pickled, there_and_back
from flowplug.testing._distributed import (
    cannot_distribute,
    cannot_shard,
    data_parallel,
    one_process,
    one_process_sharded,
    sharded,
    without_parameters,
    without_state,
)


def _compiled(case: Case, transform: Any) -> nn.Module:  # noqa: ANN401
    del case
    torch.compiler.reset()  # earlier transforms count as recompilations of this one
    compiled = torch.compile(transform, backend="aot_eager", dynamic=False)
    return InWay(transform, forward=compiled, around=_without_compilers_warnings)


@contextlib.contextmanager
def _without_compilers_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        # It looks at gradients of inputs that have none, and makes instances of functions.
        warnings.simplefilter("ignore")
        yield


def _autocast(case: Case, transform: nn.Module) -> nn.Module:
    return InWay(transform, around=partial(torch.autocast, case.x.device.type, torch.bfloat16))


def _in_inference_mode(case: Case, transform: nn.Module) -> nn.Module:
    with torch.inference_mode():
        made = case.fresh()
        made.load_state_dict(transform.state_dict())
        return InWay(made, around=torch.inference_mode)


def _under_another_default_device(case: Case, transform: nn.Module) -> nn.Module:
    """One without numbers: whatever is made without a device meets those of the inputs and fails."""
    made = case.fresh()
    with torch.device("meta"):
        meet(made, case.x, case.context)
    made.load_state_dict(transform.state_dict())
    return InWay(made, around=partial(torch.device, "meta"))


def _checkpointed(case: Case, transform: Any) -> nn.Module:  # noqa: ANN401
    del case
    again = partial(checkpoint, use_reentrant=False)
    return InWay(transform, forward=partial(again, transform), inverse=partial(again, transform.inverse))


class _Inverse(nn.Module):
    """``functional_call`` knows ``forward`` only."""

    transform: Any

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        pair: tuple[Tensor, Tensor] = self.transform.inverse(y, context)
        return pair


class _Pullback(torch.autograd.Function):
    """A function with the derivative that torch.func finds for it."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], *arguments: Tensor) -> Any:  # noqa: ANN401
        outputs, ctx.pullback = torch.func.vjp(function, *arguments)  # type: ignore[misc]
        return tuple(output.clone() for output in outputs)  # no views of a common base

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return (None, *ctx.pullback(grads))


def _functional(case: Case, transform: nn.Module) -> nn.Module:
    del case

    def through(module: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        parameters = dict(module.named_parameters())
        given = [x] if context is None else [x, context]

        def call(*arguments: Tensor) -> tuple[Tensor, Tensor]:
            values = dict(zip(parameters, arguments[len(given) :], strict=True))
            inputs = (arguments[0], None if context is None else arguments[1])
            pair: tuple[Tensor, Tensor] = torch.func.functional_call(module, values, inputs)
            return pair

        pair: tuple[Tensor, Tensor] = _Pullback.apply(call, *given, *parameters.values())  # type: ignore[no-untyped-call]
        return pair

    return InWay(transform, forward=partial(through, transform), inverse=partial(through, _Inverse(transform)))


def _by_rows(case: Case, transform: Any) -> nn.Module:  # noqa: ANN401
    del case

    def mapped(direction: Callable[..., Any], x: Tensor, context: Tensor | None) -> Any:  # noqa: ANN401
        # Not the module itself, whose description vmap asks for, and which may draw random numbers.
        in_dims = (0, None if context is None else 0)
        return torch.func.vmap(lambda *row: direction(*row), in_dims=in_dims)(x, context)

    return InWay(transform, forward=partial(mapped, transform), inverse=partial(mapped, transform.inverse))


def _in_an_ensemble(case: Case, transform: nn.Module) -> nn.Module:
    del case

    def first(module: nn.Module, x: Tensor, context: Tensor | None) -> Any:  # noqa: ANN401
        states: list[dict[str, Tensor]] = [dict(module.named_parameters()), dict(module.named_buffers())]
        stacked = [{name: torch.stack([value, value.detach()]) for name, value in state.items()} for state in states]

        def member(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Any:  # noqa: ANN401
            return torch.func.functional_call(module, (parameters, buffers), (x, context))

        return tuple(part[0] for part in torch.func.vmap(member)(*stacked))

    return InWay(transform, forward=partial(first, transform), inverse=partial(first, _Inverse(transform)))


def _no_gpu(case: Case) -> str | None:
    if case.x.is_cuda:
        return "the inputs are on a GPU already, and so are all other ways"
    return None if torch.cuda.is_available() else "this machine has no GPU that torch can use"


_WRAPPED = {"copies": "a wrapper of this way cannot be copied"}
_MOVED = {**_WRAPPED, "casts": "weights are cast before they are distributed"}
_SHARDED = {**_MOVED, "autograd.grad": "gradients reach sharded parameters by backward() only"}

WAYS: dict[str, Way] = {
    "eager": EAGER,
    "compiled": Way(_compiled, lacks={**_WRAPPED, "cheap": "every shape and mode is compiled anew"}),
    "autocast": Way(
        _autocast,
        lacks={**_WRAPPED, "precision": "the forward pass has half precision", "casts": "autocast is for float32"},
        dtype=torch.float32,
        loose=0.2,
    ),
    "inference mode": Way(
        _in_inference_mode,
        around=torch.inference_mode,
        lacks={**_WRAPPED, "gradients": "inference mode builds no graph"},
    ),
    "torch.func": Way(
        _functional,
        lacks={**_WRAPPED, "two derivatives": "the harness takes the derivative of torch.func once"},
        refuses=(VmapError,),
    ),
    "vmap": Way(
        _by_rows,
        lacks={
            **_WRAPPED,
            "batches": "vmap maps over one batch dimension",
            "memory": "vmap itself expands what is the same for all rows",
        },
        refuses=(VmapError,),
        same_noise=False,
    ),
    "ensemble": Way(
        _in_an_ensemble,
        unavailable=without_state,
        lacks={**_WRAPPED, "memory": "vmap itself expands what is the same for all members"},
        refuses=(VmapError,),
        same_noise=False,
    ),
    "anomaly mode": Way(around=partial(torch.autograd.set_detect_anomaly, mode=True)),
    "another default device": Way(_under_another_default_device, lacks=_WRAPPED),
    "checkpointed": Way(_checkpointed, lacks=_WRAPPED),
    "DDP": Way(data_parallel, around=one_process, unavailable=cannot_distribute, lacks=_MOVED),
    "FSDP": Way(sharded, around=one_process_sharded, unavailable=cannot_shard, lacks=_SHARDED),
    "deepcopy": Way(deepcopied),
    "pickle": Way(pickled),
    "averaged": Way(partial(averaged, use_buffers=False), unavailable=without_parameters),
    "averaged with buffers": Way(partial(averaged, use_buffers=True), unavailable=without_state),
    "dtype there and back": Way(there_and_back),
    "CUDA": Way(unavailable=_no_gpu, device="cuda", same_noise=False),
}
