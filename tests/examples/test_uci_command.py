"""examples/uci.py as users run it: the grid, runs that are killed, shared and gone on with, and wrong options."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

import flowplug as fp
from common import resumable
from common.report import read_lines, write_lines
from common.tables import load
from uci.training import Training

uci = importlib.import_module("uci.__main__")

ROOT = Path(__file__).parents[2]
DOOR = ROOT / "examples" / "uci.py"


def arguments(table, out, *more):
    fixed = ["--data", table, "--out", out, "--parameters", 1500, "--batch", 64, "--warmup", 5]
    return [str(argument) for argument in (*fixed, *more)]


def lines(out):
    return read_lines(out / "results.jsonl")


def outcome(line):
    """What does not depend on the clock."""
    return line["test_log_likelihood"], line["validation"], [point[1:] for point in line["curve"]]


def environment():
    places = [ROOT, ROOT / "adapters", ROOT / "examples", os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(map(str, places))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, "the run ended too soon"
        time.sleep(0.01)


@pytest.mark.slow
def test_the_grid_is_run_and_reported(table, tmp_path):
    out = tmp_path / "out"
    models = ["zuko-maf", "nflows-rqs+dense"]
    uci.main(arguments(table, out, "--models", *models, "--seeds", 3, 4, "--steps", 40))
    found = lines(out)
    assert [(line["config"]["model"], line["config"]["seed"]) for line in found] == [
        (model, seed) for model in models for seed in (3, 4)
    ]
    for line in found:
        first, last = line["curve"][0][2], line["curve"][-1][2]
        assert line["steps"] == 40
        assert last > first
        assert line["test_log_likelihood"] == pytest.approx(last, abs=1.0)
        assert line["round_trip_error"] < 1e-3
        assert line["sampling_ms"] > 0
        assert line["peak_memory_mib"] > 50
        assert line["versions"]["torch"] == version("torch")
        assert {"flowplug", "commit", "device", "date"} <= set(line["versions"])
    assert (out / "table.md").read_text().count("\n") == 6
    written = {path.name for path in out.iterdir() if path.suffix != ".pt"}
    assert written == {"results.jsonl", "rows.jsonl", "summary.md", "table.md"}  # no gains
    for line in found:
        saved = torch.load(out / "table-{model}-{seed}.values.pt".format(**line["config"]), weights_only=True)
        assert saved["config"] == line["config"]
        assert float(saved["values"].mean()) == pytest.approx(line["test_log_likelihood"], abs=1e-5)


def test_runs_that_are_done_are_not_repeated(table, tmp_path, monkeypatch, capsys):
    command = arguments(table, tmp_path / "out", "--models", "zuko-maf", "--steps", 3)
    uci.main(command)
    before = lines(tmp_path / "out")
    with pytest.raises(SystemExit):
        uci.main(command)
    assert "pass --resume" in capsys.readouterr().err
    monkeypatch.setattr(resumable, "run", None)
    uci.main([*command, "--resume"])
    assert lines(tmp_path / "out") == before


def test_runs_of_other_code_are_accepted_only_if_told_so(table, tmp_path, monkeypatch, capsys):
    command = [*arguments(table, tmp_path / "out", "--models", "zuko-maf", "--steps", 3), "--resume"]
    uci.main(command)
    (line,) = lines(tmp_path / "out")
    now, line["versions"]["commit"] = line["versions"]["commit"] or "unknown", "0123abc"
    write_lines(tmp_path / "out" / "results.jsonl", [line])
    monkeypatch.setattr(resumable, "run", None)
    with pytest.raises(SystemExit) as end:
        uci.main(command)
    (message,) = capsys.readouterr().err.splitlines()[-1:]
    assert end.value.code == 2
    assert all(part in message for part in ("at commit 0123abc", f"at commit {now}", "pass --across-commits"))
    uci.main([*command, "--across-commits"])
    assert lines(tmp_path / "out") == [line]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code": "flowplug 0.0.1 at commit 0123abc"}, "made by flowplug 0.0.1 at commit 0123abc, this is flowplug"),
        ({"lr": 1e-3}, r"of a run with other \['lr'\]: use another --out"),
    ],
)
def test_checkpoints_of_other_code_or_options_are_refused(table, tmp_path, monkeypatch, capsys, change, message):
    command = arguments(table, tmp_path / "out", "--models", "zuko-maf", "--steps", 4, "--checkpoint", 0)
    run = resumable.run

    def killed(training, measured, *, resume):
        training.code = change.get("code", training.code)
        training.config |= {"lr": change.get("lr", training.config["lr"])}
        next(iter(training))
        raise KeyboardInterrupt

    monkeypatch.setattr(resumable, "run", killed)
    with pytest.raises(SystemExit):
        uci.main(command)
    monkeypatch.setattr(resumable, "run", run)
    with pytest.raises(SystemExit) as end:
        uci.main([*command, "--resume"])
    assert end.value.code == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    if "code" in change:
        uci.main([*command, "--resume", "--across-commits"])
        assert lines(tmp_path / "out")[0]["steps"] == 4


def test_an_interrupted_run_is_saved_and_goes_on_in_the_same_bits(table, tmp_path, monkeypatch, capsys):
    command = arguments(table, tmp_path / "stopped", "--models", "zuko-maf", "--steps", 8)
    advance = Training.advance

    def interrupted(run):
        if run.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(run)

    monkeypatch.setattr(Training, "advance", interrupted)
    with pytest.raises(SystemExit) as end:
        uci.main(command)
    assert end.value.code == 130
    said = f"interrupted: {tmp_path / 'stopped'} holds what there is; the same command with --resume goes on"
    assert said in capsys.readouterr().out
    assert torch.load(tmp_path / "stopped" / "table-zuko-maf-0.checkpoint.pt", weights_only=True)["step"] == 4
    monkeypatch.setattr(Training, "advance", advance)
    uci.main([*command, "--resume"])
    uci.main(arguments(table, tmp_path / "whole", "--models", "zuko-maf", "--steps", 8))
    assert outcome(lines(tmp_path / "stopped")[0]) == outcome(lines(tmp_path / "whole")[0])


def test_an_interruption_while_a_run_is_measured_keeps_its_line_and_ends_there(table, tmp_path, monkeypatch):
    measured = uci.measured

    def interrupted(run):
        os.kill(os.getpid(), signal.SIGINT)
        return measured(run)

    monkeypatch.setattr(uci, "measured", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as end:
        uci.main(arguments(table, tmp_path / "out", "--models", "zuko-maf", "zuko-maf+dense", "--steps", 3))
    assert end.value.code == 130
    assert [line["config"]["model"] for line in lines(tmp_path / "out")] == ["zuko-maf"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bits(table, tmp_path):
    options = ["--models", "zuko-maf+residual", "--steps", 80, "--checkpoint", 0]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    checkpoint = killed / "table-zuko-maf+residual-0.checkpoint.pt"
    command = [sys.executable, DOOR, *arguments(table, killed, *options)]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    uci.main(arguments(table, whole, "--models", "zuko-maf+residual", "--steps", 80))
    wait_for(checkpoint.exists, process)
    wait_for(lambda: torch.load(checkpoint, weights_only=True)["step"] > 5, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 5 < torch.load(checkpoint, weights_only=True)["step"] < 80
    uci.main([*arguments(table, killed, *options), "--resume"])
    assert outcome(lines(killed)[0]) == outcome(lines(whole)[0])
    assert not checkpoint.exists()


@pytest.mark.slow
def test_two_processes_train_as_one(table, tmp_path):
    with np.load(table) as file:  # up to 4 features log-dets are exact in training: no process draws its own
        np.savez(table, **{part: file[part][:, :4] for part in file.files})
    model = "zuko-maf+residual+dense"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", DOOR]
    options = ["--models", model, "--steps", 12]
    process = subprocess.Popen(
        [sys.executable, *command, *arguments(table, tmp_path / "two", *options)], env=environment()
    )
    uci.main(arguments(table, tmp_path / "one", *options))
    assert process.wait(timeout=120) == 0
    one, two = (outcome(lines(tmp_path / out)[0]) for out in ("one", "two"))
    assert len(one[2]) == 12
    torch.testing.assert_close(torch.tensor(two[2]), torch.tensor(one[2]), atol=2e-4, rtol=0)
    assert two[0] == pytest.approx(one[0], abs=2e-4)
    file = f"table-{model}-0.values.pt"
    one, two = (torch.load(tmp_path / out / file, weights_only=True)["values"] for out in ("one", "two"))
    torch.testing.assert_close(two, one, atol=5e-3, rtol=0)  # row by row: in one order


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run_alone(table, tmp_path, monkeypatch):
    make = uci.models.make

    def broken(name, features, parameters):
        density = make(name, features, parameters)
        if name == "zuko-maf":
            calls, log_prob = [], density._log_prob

            def later(flow, x):
                calls.append(x)
                if sum(len(x) == 64 for x in calls) > 3:
                    raise fp.NonFiniteError("overflow")
                return log_prob(flow, x)

            density._log_prob = later
        return density

    monkeypatch.setattr("uci.training.make", broken)
    uci.main(arguments(table, tmp_path / "out", "--models", "zuko-maf", "normflows-realnvp", "--steps", 10))
    failed, fine = lines(tmp_path / "out")
    assert "the loss of step 3 is nan" in failed["failed"]
    assert fine["steps"] == 10
    assert "step 3 is nan" in (tmp_path / "out" / "table.md").read_text()
    saved = torch.load(tmp_path / "out" / "table-zuko-maf-0.failure.pt", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(500, (64,), generator=generator) for _ in range(4)][-1]
    assert saved["step"] == 3
    assert torch.equal(saved["batch"][0], load(table).train[drawn])
    assert all(value.isfinite().all() for value in saved["model"].values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "a/x.npz", "b/x.npz"], "different names"),
        (["--batch", "0"], "--batch must be positive; got 0"),
        (["--weight-decay", "-1"], "--weight-decay must not be negative; got -1.0"),
        (["--decay", "1"], r"--decay must be in \[0, 1\); got 1.0"),
        (["--steps", "5", "--seconds", "5"], "--steps is not allowed with --seconds"),
        (["--device", "abacus"], "--device must be a device of torch, such as cpu or cuda; got abacus"),
        (["--replay"], "--replay needs a GPU, --device cuda; got --device cpu"),
        (["--models", "none"], "--models must be of zuko-nsf, .*; got none"),
    ],
)
def test_bad_options_are_refused(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as end:
        uci.main([*options, "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert re.fullmatch(f"error: .*{message}.*", capsys.readouterr().err.strip())
    assert not (tmp_path / "out").exists()


def test_a_table_that_is_not_there_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        uci.main(["--data", str(tmp_path / "none.npz"), "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert re.fullmatch(r"error: there is no file .*none.npz: give an .npz file.*\n", capsys.readouterr().err)
