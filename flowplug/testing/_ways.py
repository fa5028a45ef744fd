"""The ways of running in which the laws are checked."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from flowplug.testing._case import EAGER, Case, InWay, Way, meet


def _compiled(case: Case, transform: Any) -> nn.Module:  # noqa: ANN401
    del case
    torch.compiler.reset()  # earlier transforms count as recompilations of this one
    compiled = torch.compile(transform, backend="aot_eager", dynamic=False)
    return InWay(transform, forward=compiled, around=_without_compilers_warnings)


@contextlib.contextmanager
def _without_compilers_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        # The compiler looks at the gradients of all inputs.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf Tensor")
        yield


def _autocast(case: Case, transform: nn.Module) -> nn.Module:
    return InWay(transform, around=partial(torch.autocast, case.x.device.type, torch.bfloat16))


def _in_inference_mode(case: Case, transform: nn.Module) -> nn.Module:
    with torch.inference_mode():
        made = case.fresh()
        made.load_state_dict(transform.state_dict())
        return InWay(made, around=torch.inference_mode)


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
        return torch.func.vmap(direction, in_dims=(0, None if context is None else 0))(x, context)

    return InWay(transform, forward=partial(mapped, transform), inverse=partial(mapped, transform.inverse))


def _no_parameters(case: Case) -> str | None:
    trained = any(parameter.requires_grad for parameter in case.fresh().parameters())
    return None if trained else "it has no parameters"


def _distributed(case: Case) -> str | None:
    if not (distributed.is_available() and distributed.is_gloo_available()):
        return "this build of torch has no gloo"
    return _no_parameters(case)


def _sharded_unavailable(case: Case) -> str | None:
    reason = _distributed(case)
    if reason is None and "fully_shard" not in dir(importlib.import_module("torch.distributed.fsdp")):
        return "this version of torch has no fully_shard"
    return reason


@contextlib.contextmanager
def _one_process() -> Iterator[None]:
    if distributed.is_initialized():
        yield
        return
    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def _one_process_sharded() -> Iterator[None]:
    with _one_process(), warnings.catch_warnings():
        # Outputs may be views: nothing here writes on one that a backward pass needs.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")
        yield


def _data_parallel(case: Case, transform: nn.Module) -> nn.Module:
    del case
    return InWay(transform, forward=DistributedDataParallel(transform))


def _sharded(case: Case, transform: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # not in older torch

    mesh = distributed.device_mesh.init_device_mesh(case.x.device.type, (distributed.get_world_size(),))
    fully_shard(transform, mesh=mesh)
    register_fsdp_forward_method(transform, "inverse")
    return InWay(transform)


def _deepcopied(case: Case, transform: nn.Module) -> nn.Module:
    _serve(case, transform)
    return copy.deepcopy(transform)


def _pickled(case: Case, transform: nn.Module) -> nn.Module:
    _serve(case, transform)
    buffer = io.BytesIO()
    torch.save(transform, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.load(buffer, weights_only=False)
    return loaded


def _averaged(case: Case, transform: nn.Module, *, use_buffers: bool) -> nn.Module:
    """An average of three transforms, each with its own weights and its own start from data."""
    halve = get_ema_multi_avg_fn(0.5)  # type: ignore[no-untyped-call]
    average = AveragedModel(_near(case, transform, -0.3), multi_avg_fn=halve, use_buffers=use_buffers)
    average.n_averaged.fill_(1)  # the first update would replace what it holds
    for model in (transform, _near(case, transform, 0.5)):
        average.update_parameters(model)
        _serve(case, average.module)
    return average.module


@torch.no_grad()
def _near(case: Case, transform: nn.Module, share: float) -> Any:  # noqa: ANN401
    """A transform with weights close to given ones, as far ones may have a singular mean, and started elsewhere."""
    near, other = case.fresh(), case.fresh()
    # Permutations, seeds, initial weights: what is random is taken over, and the start is not.
    drawn = [name for name, value in near.state_dict().items() if not torch.equal(value, other.state_dict()[name])]
    meet(near, case.x + share * case.x.flip(0), case.context)
    near.load_state_dict({**near.state_dict(), **{name: transform.state_dict()[name] for name in drawn}})
    for parameter in near.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    return near


def _there_and_back(case: Case, transform: nn.Module) -> nn.Module:
    """Served in the other precision in between."""
    other = torch.float32 if case.x.dtype == torch.float64 else torch.float64
    _serve(case, transform)
    context = None if case.context is None else case.context.to(other)
    _serve(Case(case.make, case.x.to(other), context), transform.to(other))
    return transform.to(case.x.dtype)


def _serve(case: Case, transform: Any) -> None:  # noqa: ANN401
    """Values before a change, which must leave no trace in those after it."""
    mode = transform.training
    with torch.no_grad():
        for training in (True, False):
            transform.train(training)
            transform(case.x, case.context)
            transform.inverse(case.x, case.context)
    transform.train(mode)


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
        refuses=("VmapError",),
    ),
    "vmap": Way(
        _by_rows,
        lacks={
            **_WRAPPED,
            "batches": "vmap maps over one batch dimension",
            "memory": "vmap itself expands what is the same for all rows",
        },
        refuses=("VmapError",),
    ),
    "anomaly mode": Way(around=partial(torch.autograd.set_detect_anomaly, mode=True)),
    "checkpointed": Way(_checkpointed, lacks=_WRAPPED),
    "DDP": Way(_data_parallel, around=_one_process, unavailable=_distributed, lacks=_MOVED),
    "FSDP": Way(_sharded, around=_one_process_sharded, unavailable=_sharded_unavailable, lacks=_SHARDED),
    "deepcopy": Way(_deepcopied),
    "pickle": Way(_pickled),
    "averaged": Way(partial(_averaged, use_buffers=False), unavailable=_no_parameters),
    "averaged with buffers": Way(partial(_averaged, use_buffers=True)),
    "dtype there and back": Way(_there_and_back),
    "CUDA": Way(unavailable=_no_gpu, device="cuda"),
}
