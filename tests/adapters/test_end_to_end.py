"""From the first batch to samples in another process, as people run flows, beside the plain way."""

import subprocess
import sys
from pathlib import Path

import nflows.distributions
import nflows.flows
import normflows as nf
import pytest
import torch
import zuko
from nflows import transforms as nt
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from zuko.lazy import UnconditionalDistribution

import flowplug as fp
import flowplug_nflows
import flowplug_normflows
import flowplug_zuko

D = 6


def core():
    """Residual and dense transforms above the dimension to which log-dets are exact in training."""
    return [
        fp.Whitening(D),
        fp.DenseTransform(D),
        fp.ResidualTransform(fp.LipschitzMLP(D, (32,))),
        fp.DenseTransform(D, activation=None),
        fp.ActNorm(D),
    ]


class Nflows(torch.nn.Module):
    def __init__(self):
        super().__init__()
        parts = [flowplug_nflows.NflowsTransform(part) for part in core()]
        maf = nt.MaskedAffineAutoregressiveTransform(D, 16)
        self.flow = nflows.flows.Flow(nt.CompositeTransform([*parts, maf]), nflows.distributions.StandardNormal([D]))

    def start(self, x):
        flowplug_nflows.start(self.flow, x)

    def forward(self, x):
        return self.flow.log_prob(x)

    def sample(self, z):
        return self.flow._transform.inverse(z)[0]


class Normflows(torch.nn.Module):
    def __init__(self):
        super().__init__()
        parts = [flowplug_normflows.NormflowsFlow(part) for part in reversed(core())]
        maf = nf.flows.MaskedAffineAutoregressive(D, 16)
        self.flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(D, trainable=False), [maf, *parts])

    def start(self, x):
        flowplug_normflows.start(self.flow, x)

    def forward(self, x):
        return self.flow.log_prob(x)

    def sample(self, z):
        return self.flow.forward(z)


class Zuko(torch.nn.Module):
    def __init__(self):
        super().__init__()
        parts = [flowplug_zuko.ZukoTransform(part) for part in core()]
        maf = zuko.flows.MAF(D, transforms=1, hidden_features=(16,)).transform
        base = UnconditionalDistribution(zuko.distributions.DiagNormal, torch.zeros(D), torch.ones(D), buffer=True)
        self.flow = zuko.lazy.Flow([*parts, maf], base)

    def start(self, x):
        flowplug_zuko.start(self.flow, x)

    def forward(self, x):
        return self.flow().log_prob(x)

    def sample(self, z):
        return self.flow().transform.inv(z)


HOSTS = {"nflows": Nflows, "normflows": Normflows, "zuko": Zuko}


def data(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, D, generator=generator)
    x[:, 1::2] += x[:, ::2].square()
    return x * torch.tensor([1.0, 10.0, 0.01, 1.0, 1e4, 1.0])  # in units of their own


def trained(host, *, plain, steps=60):
    torch.manual_seed(0)
    flow = HOSTS[host]()
    flow.start(data(1000, 1))
    averaged = AveragedModel(flow, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.AdamW(flow.parameters(), 2e-3, **({"foreach": False} if plain else {"fused": True}))
    for step in range(steps):
        x = data(256, 100 + step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=not plain):
            loss = -flow(x).mean()
        loss.backward()
        optimizer.step()
        averaged.update_parameters(flow)
        if step % 20 == 10:  # what is derived from the weights is served in between
            with torch.no_grad():
                flow.eval()(x[:50])
                flow.train()
    return averaged.module.eval()


@torch.no_grad()
def judged(flow, *, autocast):
    z = torch.randn(200, D, generator=torch.Generator().manual_seed(5))
    validation = flow(data(1000, 2))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return {"validation": validation, "samples": flow.sample(z)}


if __name__ == "__main__":
    host, state, out = sys.argv[1:]
    flow = HOSTS[host]().eval()
    flow.load_state_dict(torch.load(state))
    torch.save(judged(flow, autocast=True), out)


@pytest.mark.slow
# A flow that loads a state was started before it was saved.
@pytest.mark.filterwarnings("ignore:.*met.*rows:flowplug.StartWarning")
@pytest.mark.parametrize("host", HOSTS)
def test_trained_fused_in_half_precision_averaged_saved_and_sampled_elsewhere(users_defaults, tmp_path, host):
    del users_defaults
    flow = trained(host, plain=False)
    torch.save(flow.state_dict(), tmp_path / "state.pt")
    command = [sys.executable, "-W", "ignore", __file__, host, str(tmp_path / "state.pt"), str(tmp_path / "out.pt")]
    path = ":".join(map(str, (Path(__file__).parents[2] / part for part in (".", "adapters"))))
    subprocess.run(command, check=True, env={"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    elsewhere, here = torch.load(tmp_path / "out.pt"), judged(flow, autocast=False)
    # The same weights, in another process, sampled under autocast.
    torch.testing.assert_close(elsewhere["validation"], here["validation"], atol=1e-4, rtol=1e-4)
    scale = here["samples"].std(0)
    host_rounds = 0.05  # of its own layers under autocast, at 8 bits
    torch.testing.assert_close(
        elsewhere["samples"] / scale, here["samples"] / scale, atol=host_rounds, rtol=host_rounds
    )
    # The plain run: the difference is the noise of training, not of what was served stale.
    plain = judged(trained(host, plain=True), autocast=False)
    gain = here["validation"] - plain["validation"]
    error = float(gain.std()) / len(gain) ** 0.5
    print(f"\n{host}: half against plain {float(gain.mean()):+.4f} +- {2 * error:.4f} nats")
    assert abs(float(gain.mean())) < 0.02
