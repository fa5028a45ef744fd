"""examples/compare.py: the flows of each host, and what a run writes."""

import json
import re

import pytest
import torch

import compare
from common.densities import log_likelihoods


@pytest.mark.parametrize("host", compare.HOSTS)
def test_every_model_trains_and_inverts(host):
    x = torch.randn(16, 4)
    models = compare.HOSTS[host].models(4)
    assert len(models) == 4
    for make in models.values():
        density = make()
        (-density(x).mean()).backward()
        assert log_likelihoods(density, x).shape == (16,)
        density.eval()
        with torch.no_grad():
            assert density.sample(5).shape == (5, 4)
            torch.testing.assert_close(density.round_trip(x), x, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_a_run_writes_its_table_and_picture(table, tmp_path):
    out = tmp_path / "out"
    compare.main(["--data", str(table), "--hosts", "zuko", "--steps", "30", "--out", str(out)])
    assert {path.name for path in out.iterdir()} == {"results.md", "results.json", "marginals.png"}
    found = json.loads((out / "results.json").read_text())
    assert [line["model"] for line in found] == [
        "zuko: MAF",
        "zuko: MAF + marginal",
        "zuko: MAF + residual",
        "zuko: pure residual",
    ]
    assert all(line["test_log_likelihood"] < 0 < line["parameters"] for line in found)
    assert all("commit" in line["versions"] for line in found)
    report = (out / "results.md").read_text()
    assert report.startswith("table: 500 training rows; 30 steps a model on cpu\n\n| model |")
    assert report.count("\n") == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hosts", "jax"], "--hosts must be of nflows, normflows, zuko; got jax"),
        (["--seconds", "0"], "--seconds must be positive; got 0.0"),
        (["--steps", "5", "--seconds", "5"], "--steps is not allowed with --seconds"),
        (["--data", "none.npz"], "there is no file none.npz"),
    ],
)
def test_bad_options_are_refused(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as end:
        compare.main([*options, "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert re.fullmatch(f"error: {message}.*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
