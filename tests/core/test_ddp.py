"""Two processes of torch.distributed train the same flow as one process with the whole batch."""

import importlib
import os
import socket

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import flowplug as fp
import flowplug_nflows


class NegativeLogLikelihood(nn.Module):
    """DDP watches ``forward``, which nflows' Flow does not have."""

    def __init__(self):
        super().__init__()
        self.flow = flowplug_nflows.ResidualFlow(3, 8, num_layers=2, num_blocks_per_layer=1)
        self.flow._transform._transforms.append(flowplug_nflows.DenseTransform(3))

    def forward(self, x):
        return -self.flow.log_prob(x).mean()


def train(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for x in batches:
        optimizer.zero_grad()
        model(x).backward()
        optimizer.step()


def setting():
    torch.set_default_dtype(torch.float64)
    torch.set_default_device(None)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, batches = NegativeLogLikelihood(), 2 + torch.randn(4, 16, 3)
    flowplug_nflows.start(model.flow, batches[0])
    return model, batches


def replicated(model):
    return DistributedDataParallel(model)


def sharded(model):
    fully_shard = importlib.import_module("torch.distributed.fsdp").fully_shard  # not in older torch
    return fully_shard(model, mesh=distributed.device_mesh.init_device_mesh("cpu", (2,)))


def whole(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def worker(rank, port, distribute, queue):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    model, batches = setting()
    train(distribute(model), batches[:, 8 * rank : 8 * rank + 8])
    queue.put({name: whole(value).tolist() for name, value in model.state_dict().items()})
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("distribute", [replicated, sharded])
def test_two_processes_equal_one(distribute):
    if distribute is sharded and not hasattr(importlib.import_module("torch.distributed.fsdp"), "fully_shard"):
        pytest.skip("this version of torch has no fully_shard")
    model, batches = setting()
    train(model, batches)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=worker, args=(rank, port, distribute, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    states = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    for state in states:
        for name, value in model.state_dict().items():
            torch.testing.assert_close(torch.tensor(state[name], dtype=value.dtype), value, atol=1e-12, rtol=0)


def test_buffers_are_plain_and_of_fixed_shape():
    flow = flowplug_nflows.ResidualFlow(3, 8, num_layers=1, num_blocks_per_layer=1)
    before = {name: (buffer.shape, buffer.dtype) for name, buffer in flow.named_buffers()}
    flow.log_prob(torch.randn(8, 3)).mean().backward()
    flow.eval().sample(4)
    assert {name: (buffer.shape, buffer.dtype) for name, buffer in flow.named_buffers()} == before
    assert isinstance(flow._transform._transforms[0].core, fp.Whitening)
