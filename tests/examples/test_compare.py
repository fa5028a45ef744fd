"""examples/compare.py: the flows of each host, and what a run writes."""

import re

import numpy as np
import pytest
import torch

import compare
from common.densities import log_likelihoods
from common.paired import Estimate
from common.report import read_lines


@pytest.mark.parametrize("name", compare.MODELS)
def test_every_model_trains_and_inverts(name):
    x = torch.randn(16, 4)
    density = compare.MODELS[name].make(4, 8)
    (-density(x).mean()).backward()
    assert log_likelihoods(density, x).shape == (16,)
    density.eval()
    with torch.no_grad():
        assert density.sample(5).shape == (5, 4)
        torch.testing.assert_close(density.round_trip(x), x, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_a_run_writes_its_table_and_pictures(table, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["--data", str(table), "--hosts", "zuko", "--steps", "30", "--out", str(out)]
    compare.main(command)
    names = {"results.md", "results.jsonl", "gains.png", "marginals.png"}
    assert {path.name for path in out.iterdir() if path.suffix != ".pt"} == names
    found = read_lines(out / "results.jsonl")
    assert [line["config"]["model"] for line in found] == ["zuko-maf", "zuko-maf+dense"]
    assert all(line["test_log_likelihood"] < 0 < line["parameters"] for line in found)
    assert all("commit" in line["versions"] for line in found)
    report = (out / "results.md").read_text()
    assert report.startswith("table: 500 training rows of 6 features; 30 steps a flow on cpu\n\n| host | flow |")
    gain = found[1]["test_log_likelihood"] - found[0]["test_log_likelihood"]
    assert f"| zuko | DenseTransform, MAF | {found[1]['test_log_likelihood']:.2f} ± " in report
    assert f"| {gain:+.2f} ± " in report
    assert report.splitlines()[-1].startswith("flowplug improves ")
    assert report.split("\n\n", 1)[1] in capsys.readouterr().out
    compare.main([*command, "--resume"])
    assert read_lines(out / "results.jsonl") == found


def test_time_is_cpu_time_on_a_cpu_only(tmp_path):
    (config, *_) = compare.Options(hosts=("zuko",), seconds=3.0, out=tmp_path).configs("photographs", 1)
    assert (config["seconds"], config["cpu"], config["data"]) == (3.0, True, "photographs")
    (config, *_) = compare.Options(hosts=("zuko",), steps=3, out=tmp_path).configs("photographs", 1)
    assert config["steps"] == 3
    assert "cpu" not in config


class TestConclusion:
    def said(self, **gains):
        names = dict(
            zip(("one", "two", "three"), ("nflows-rqs+dense", "zuko-maf+dense", "normflows-realnvp+dense"), strict=True)
        )
        levels = [("zuko-maf", 1.5), ("nflows-rqs", None), *[(names[key], 1.0) for key in gains]]
        lines = [{"config": {"model": name}, "test_log_likelihood": level} for name, level in levels]
        return compare.conclusion({names[key]: Estimate(*gain) for key, gain in gains.items()}, lines)

    def test_says_what_is_better_and_what_is_best(self):
        assert self.said(one=(2.0, 0.5)) == (
            "flowplug improves 1 of 1 flows by more than two standard errors. Best of all: zuko MAF, 1.50 nats."
        )

    def test_says_what_is_worse_and_what_cannot_be_told(self):
        said = self.said(one=(-2.0, 0.5), two=(0.3, 0.5), three=(2.0, 0.5))
        assert said.startswith("flowplug improves 1 of 3 flows by more than two standard errors; worse: ")
        assert "; worse: nflows RQ-NSF, half DenseTransform; " in said
        assert "; not to be told from these rows: zuko DenseTransform, MAF. " in said

    def test_has_a_word_where_nothing_ended_well(self):
        assert self.said() == "Nothing to compare: a flow failed, or its plain one."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hosts", "jax"], "--hosts must be of nflows, normflows, zuko; got jax"),
        (["--seconds", "0"], "--seconds must be positive; got 0.0"),
        (["--steps", "5", "--seconds", "5"], "--steps is not allowed with --seconds"),
        (["--data", "none.npz"], "there is no file none.npz: give an .npz file"),
        (["--data", "FOLDER/table.csv"], ".*table.csv is no .npz file: write one by"),
        (["--data", "FOLDER/damaged.npz"], ".*damaged.npz is no .npz file: write one by"),
        (["--data", "FOLDER/nan.npz"], "train of .*nan.npz holds 1 NaN"),
        (["--data", "FOLDER/narrow.npz"], ".*narrow.npz has 1 feature, and couplings need 2"),
        (["--data", "FOLDER/short.npz"], "train of .*short.npz has 3 rows, of 6 features: it needs more"),
        (["--device", "gpu"], "--device must be a device of torch"),
        (["--out", "FOLDER/table.csv"], "--out .*table.csv is a file: give a folder"),
    ],
)
def test_bad_options_are_refused(tmp_path, capsys, options, message):
    rows = torch.randn(90, 6).numpy()
    broken = rows.copy()
    broken[0, 0] = np.nan
    (tmp_path / "table.csv").write_text("1,2\n3,4\n")
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 and no more")
    for name, train in {"nan": broken, "narrow": rows[:, :1], "short": rows[:3]}.items():
        width = train.shape[1]
        np.savez(tmp_path / f"{name}.npz", train=train, val=rows[:9, :width], test=rows[:9, :width])
    given = [option.replace("FOLDER", str(tmp_path)) for option in options]
    with pytest.raises(SystemExit) as end:
        compare.main([*given, *([] if "--out" in given else ["--out", str(tmp_path / "out")])])
    assert end.value.code == 2
    assert re.fullmatch(f"error: {message}.*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
