"""Two processes shard a whole flow by FSDP2 and train it as one process does; parts of g are refused by name."""

import os
import socket

import pytest
import torch
from torch import distributed, multiprocessing, nn

import flowplug as fp

fsdp = pytest.importorskip("torch.distributed.fsdp")
if not hasattr(fsdp, "fully_shard"):
    pytest.skip("this torch has no public fully_shard", allow_module_level=True)


def make():
    torch.set_default_dtype(torch.float64)
    torch.set_default_device(None)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    flow, batches = fp.ResidualStack(3, transforms=2, hidden_features=(8,)), torch.randn(4, 16, 3)
    flow.start(torch.randn(100, 3))
    return flow, batches


def train(flow, batches):
    optimizer = torch.optim.SGD(flow.parameters(), lr=0.05)
    for x in batches:
        y, ladj = flow(x)
        optimizer.zero_grad()
        (y.square().sum(1) / 2 - ladj).mean().backward()
        optimizer.step()
    with torch.no_grad():
        y, ladj = flow.eval()(batches[0])
        return y.tolist(), ladj.tolist(), flow.inverse(y)[0].tolist()


def refusal(flow, g, x):
    fsdp.fully_shard(g)
    try:
        flow(x)
    except fp.LipschitzError as error:
        return str(error)
    return "none"


def worker(rank, port, queue):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    results = []
    for parts in (False, True):
        flow, batches = make()
        for module in [*flow.transforms, flow] if parts else [flow]:
            fsdp.fully_shard(module)
            fsdp.register_fsdp_forward_method(module, "inverse")
        results.append(train(flow, batches[:, 8 * rank : 8 * rank + 8]))
    flow, batches = make()
    results.append(refusal(flow, flow.transforms[2].g, batches[0]))
    sequential = fp.ResidualTransform(nn.Sequential(fp.LipschitzLinear(3, 3, bound=0.9)))
    results.append(refusal(sequential, sequential.g[0], batches[0]))
    queue.put((rank, results))
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one():
    flow, batches = make()
    train(flow, batches)
    with torch.no_grad():
        wanted = [[*flow(rows), rows] for rows in batches[0].split(8)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=worker, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    for rank, (*trained, network, layer) in results:
        for found in trained:
            for got, value in zip(found, wanted[rank], strict=True):
                torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), value, atol=1e-9, rtol=0)
        assert "has a forward pre-hook, FSDPState._pre_forward, " in network
        assert "part 0 = FSDPLipschitzLinear, has a forward pre-hook, FSDPState._pre_forward, " in layer
        assert network.endswith("pass the whole flow, or its transforms, to fully_shard, but no part of g")
