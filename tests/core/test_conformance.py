"""Every law, over every transform of the core and of the adapters, in every way of running."""

import pytest
import torch

from cases import ADAPTERS, CORE
from flowplug.testing import LAWS, WAYS, check_transform
from matrix import cells, check, print_summary

TABLE = {**CORE, **ADAPTERS}
# The rows that stand for all others in a first run, and where a way or a law is dear.
ROWS = {
    "whole": {"ActNorm", "Whitening", "Residual", "Residual context", "Dense", "Krylov", "PowerSeries"},
    "typical": {"Stack", "nflows", "normflows", "zuko"},
}


@pytest.mark.parametrize(("name", "law", "way"), cells(TABLE, **ROWS))
def test_law(name, law, way):
    check(TABLE[name], law, way)


def test_cells_are_counted():
    print_summary("core and adapters", TABLE, **ROWS)


def test_check_transform_runs_chosen_laws_and_ways_and_keeps_the_generator_state():
    row = CORE["ActNorm"]
    x, context = row.inputs()
    state = torch.get_rng_state()
    laws = ["round trip", "shape and dtype", "saving and copying"]
    left_out = check_transform(row.make, x, context, laws=laws, ways=["eager", "vmap"])
    assert torch.equal(torch.get_rng_state(), state)
    assert set(left_out) == {("shape and dtype", "vmap"), ("saving and copying", "vmap")}


def test_check_transform_names_what_it_does_not_know():
    row = CORE["ActNorm"]
    with pytest.raises(ValueError, match="no law 'round tip'; the laws are shape and dtype,"):
        check_transform(row.make, *row.inputs(), laws=["round tip"])
    with pytest.raises(ValueError, match="no way 'eagerly'; the ways are eager,"):
        check_transform(row.make, *row.inputs(), ways=["eagerly"])


def test_every_law_and_way_is_stated():
    assert all(law.check.__doc__ for law in LAWS.values())
    assert all(way.unavailable is not None for way in WAYS.values())
