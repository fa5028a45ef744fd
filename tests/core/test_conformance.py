"""Every law, over every transform of the core and of the adapters."""

import pytest
import torch

from cases import ADAPTERS, CORE
from flowplug.testing import LAWS, Case, check_transform

TABLE = {**CORE, **ADAPTERS}
# Laws that draw hundreds of times or train, and the rows that stand for all others in a first run.
DEAR = {"value of the ladj", "gradient of the ladj", "Lipschitz bound"}
TYPICAL = {
    "ActNorm",
    "Whitening",
    "Residual",
    "Residual context",
    "Krylov",
    "PowerSeries",
    "nflows",
    "normflows",
    "zuko",
}


def case(name, law):
    slow = law in DEAR and name not in TYPICAL
    return pytest.param(name, law, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("name", "law"), [case(n, law) for n in TABLE for law in LAWS if law not in TABLE[n].exempt])
def test_law(name, law):
    row = TABLE[name]
    LAWS[law](Case(row.make, *row.inputs()))


def test_check_transform_runs_every_law_and_keeps_the_generator_state():
    row = CORE["Residual"]
    x, context = row.inputs()
    state = torch.get_rng_state()
    check_transform(row.make, x, context)
    assert torch.equal(torch.get_rng_state(), state)
