"""Trains a flow of zuko with flowplug transforms on several devices, by Lightning Fabric.

Printed are the loss of whole batches and the mean test log-likelihood, in nats, over all processes. Several processes
take the same steps as one, but for rounding.

    python examples/tutorials/fabric.py --devices 2
    python examples/tutorials/fabric.py --accelerator cuda --devices 4
"""

from dataclasses import dataclass

import torch
import zuko
from lightning_fabric import Fabric
from torch import Tensor, nn

import flowplug as fp
import flowplug_zuko
from common.command import OptionError, at_least, parse, sound, usable
from common.plane import moons


@dataclass(frozen=True)
class Options:
    """Where to train, and for how long."""

    accelerator: str = "cpu"
    devices: int = 1  # processes, with a device each
    steps: int = 200
    batch: int = 512  # rows of a step, of all processes together

    def __post_init__(self) -> None:
        sound(self)
        usable(self, "accelerator")
        if self.accelerator == "cuda" and self.devices > (count := torch.cuda.device_count()):
            raise OptionError(f"--devices must be at most {count}, the GPUs there are; got {self.devices}")
        at_least(self, self.devices, "batch")  # a row for each


class Density(nn.Module):
    """A flow by its log-likelihood: DDP watches ``forward``, and no other method."""

    def __init__(self, flow: zuko.lazy.Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        """Log-likelihoods ``(rows,)`` in nats of ``x: (rows, features)``."""
        log_prob: Tensor = self.flow().log_prob(x)
        return log_prob


def main() -> None:
    """Trains, then tests."""
    options = parse(Options, description=__doc__)
    fabric = Fabric(accelerator=options.accelerator, devices=options.devices, strategy="ddp")
    fabric.launch()  # from here on in every process

    torch.manual_seed(0)  # the same data and weights everywhere
    train, test = fabric.to_device(moons(20_000)), fabric.to_device(moons(10_000))
    flow = zuko.flows.MAF(2, transforms=3, activation=nn.ELU)
    flow.transform.transforms.insert(0, flowplug_zuko.ZukoTransform(fp.Whitening(2)))  # <- added
    flow.transform.transforms.insert(2, flowplug_zuko.ResidualTransform(2))  # <- added
    flow.to(fabric.device)
    flowplug_zuko.start(flow, train)  # before setup, from the same rows everywhere
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    density, optimizer = fabric.setup(Density(flow), optimizer)

    rows = torch.Generator().manual_seed(0)  # the same everywhere: each process takes its share of one batch
    torch.manual_seed(fabric.global_rank)  # not the same: the noise of stochastic log-dets
    for step in range(options.steps):
        batch = torch.randint(len(train), (options.batch,), generator=rows)
        loss = -density(train[batch[fabric.global_rank :: fabric.world_size]]).mean()
        optimizer.zero_grad()
        fabric.backward(loss)  # DDP takes the mean of the gradients over processes
        optimizer.step()
        if step % 20 == 0 or step == options.steps - 1:
            fabric.print(f"step {step:4}: loss {fabric.all_reduce(loss.detach(), reduce_op='mean'):.6f} nats")

    density.eval()
    with torch.no_grad():
        scores = density(test[fabric.global_rank :: fabric.world_size])
    total = fabric.all_reduce(torch.stack([scores.sum(), scores.new_tensor(len(scores))]), reduce_op="sum")
    fabric.print(f"mean test log-likelihood of {total[1]:.0f} rows: {total[0] / total[1]:.6f} nats")


if __name__ == "__main__":
    main()
