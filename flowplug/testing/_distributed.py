"""One process of torch.distributed, in which parameters are replicated or sharded."""

from __future__ import annotations

import contextlib
import importlib
import time
import warnings
from collections.abc import Iterator

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from flowplug.testing._case import Case, InWay

_LET_GO = 0.02  # seconds


def without_parameters(case: Case) -> str | None:
    trained = any(parameter.requires_grad for parameter in case.fresh().parameters())
    return None if trained else "it has no parameters"


def without_state(case: Case) -> str | None:
    return None if case.fresh().state_dict() else "it has no state"


def cannot_distribute(case: Case) -> str | None:
    if not (distributed.is_available() and distributed.is_gloo_available()):
        return "this build of torch has no gloo"
    return without_parameters(case)


def cannot_shard(case: Case) -> str | None:
    reason = cannot_distribute(case)
    if reason is None and "fully_shard" not in dir(importlib.import_module("torch.distributed.fsdp")):
        return "this version of torch has no fully_shard"
    if reason is None and any(parameter.dim() == 0 for parameter in case.fresh().parameters()):
        return "fully_shard takes no scalar parameters: they go into its ignored_params"
    return reason


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    if distributed.is_initialized():
        yield
        return
    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        # A thread of gloo that lets go of its last work waits for the interpreter's lock and holds the group's; the end
        # of the group, here or where a model is collected, holds the first and waits for the second. A sleeping thread
        # leaves the interpreter to the other, and gloo tells nobody when it is through.
        time.sleep(_LET_GO)
        distributed.destroy_process_group()


@contextlib.contextmanager
def one_process_sharded() -> Iterator[None]:
    with one_process(), warnings.catch_warnings():
        # Outputs may be views: nothing here writes on one that a backward pass needs.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")
        yield


def data_parallel(case: Case, transform: nn.Module) -> nn.Module:
    del case
    return InWay(transform, forward=DistributedDataParallel(transform))


def sharded(case: Case, transform: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # not in older torch

    mesh = distributed.device_mesh.init_device_mesh(case.x.device.type, (distributed.get_world_size(),))
    fully_shard(transform, mesh=mesh)
    register_fsdp_forward_method(transform, "inverse")
    return InWay(transform)
