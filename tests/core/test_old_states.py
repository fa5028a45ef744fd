"""State dicts that version 0.1.0 saved load strictly, and give the numbers it gave."""

from pathlib import Path

import pytest
import torch

import flowplug_nflows
import flowplug_zuko
from cases import ADAPTERS, CORE

# In double precision and eval mode, one entry of each class: state, x, context, and what came out.
SAVED = torch.load(
    Path(__file__).parents[1] / "data" / "states_0_1_0.pt", map_location=torch.device("cpu"), weights_only=True
)
ROWS = {name: row.make for name, row in {**CORE, **ADAPTERS}.items() if name in SAVED}
FLOWS = {
    "nflows ResidualFlow": lambda: flowplug_nflows.ResidualFlow(3, 8, num_layers=2, num_blocks_per_layer=2),
    "zuko ResidualFlow": lambda: flowplug_zuko.ResidualFlow(3, transforms=2, hidden_features=(8,)),
    "zuko DenseFlow": lambda: flowplug_zuko.DenseFlow(3, transforms=2),
}


@pytest.fixture(autouse=True)
def _where_they_were_made():
    """Noise of a seed is that of the device."""
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float64)


def loaded(make, name):
    module = make().eval()
    module.load_state_dict(SAVED[name]["state"], strict=True)
    return module


def same(got, wanted):
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-12)


def test_every_saved_entry_is_tried():
    assert SAVED.keys() == ROWS.keys() | FLOWS.keys()


@torch.no_grad()
@pytest.mark.parametrize("name", ROWS)
def test_transform(name):
    saved = SAVED[name]
    transform = loaded(ROWS[name], name)
    y, ladj = transform(saved["x"], saved.get("context"))
    same(y, saved["y"])
    if getattr(transform, "eval_logdet", None) is None:  # the noise of an estimate was another
        same(ladj, saved["ladj"])


@torch.no_grad()
@pytest.mark.parametrize("name", FLOWS)
def test_flow(name):
    flow, saved = loaded(FLOWS[name], name), SAVED[name]
    log_prob = flow().log_prob if name.startswith("zuko") else flow.log_prob
    same(log_prob(saved["x"]), saved["log_prob"])


@pytest.mark.parametrize("name", [name for name in ROWS if "Whitening" in name or "ActNorm" in name])
def test_what_had_started_has_started(name):
    saved = SAVED[name]
    before = dict(saved["state"])
    module = loaded(ROWS[name], name).train()
    assert saved["state"].keys() == before.keys()
    same(module(saved["x"])[0], saved["y"])
    module(100 * saved["x"])
    same(module(saved["x"])[0], saved["y"])
