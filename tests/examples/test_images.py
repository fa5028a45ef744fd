"""examples/images.py as users run it: every subcommand, runs gone on with, and wrong options."""

import doctest
import importlib
import json
import pkgutil
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import flowplug as fp
import images as package
from common.processes import Processes
from common.report import read_lines
from images import classify, density, models, nets, pictures, stacks
from images.classifier import Classifier, Judged
from images.data import load
from images.summary import summary
from images.training import DensityRun

images = importlib.import_module("images.__main__")
MODULES = [importlib.import_module(f"images.{module.name}") for module in pkgutil.iter_modules(package.__path__)]
DOCTESTS = [test for module in MODULES for test in doctest.DocTestFinder().find(module) if test.examples]
SMALL = ["--steps", "4", "--checks", "2", "--parameters", "1000", "--blocks", "1", "--val", "20", "--test", "20"]
CONFIG = {
    "data": "digits", "model": "published", "seed": 0, "seconds": 600.0, "steps": 2, "parameters": 1000, "batch": 8,
    "lr": 2e-3, "weight_decay": 0.0, "warmup": 5, "clip": 100.0, "decay": 0.999, "checks": 1, "patience": 15,
    "amp": False, "processes": 1, "blocks": 1, "alpha": 0.05, "flips": False, "val": 20, "test": 20,
}  # fmt: skip


@pytest.mark.parametrize("example", DOCTESTS, ids=lambda test: test.name)
def test_docstring_example(example):
    assert doctest.DocTestRunner().run(example).failed == 0


@pytest.fixture(scope="module")
def digits():
    return load()


def found(out):
    return {line["config"]["model"]: line for line in read_lines(out / "results.jsonl")}


def rows(out, name="table"):
    return (out / f"{name}.md").read_text().splitlines()[2:]


@pytest.mark.slow
def test_densities_are_trained_judged_and_drawn(tmp_path):
    names = ["recommended", "published-truncated", "glow"]
    images.main(["density", *SMALL, "--models", *names, "--exact", "2", "--out", str(tmp_path)])
    lines = found(tmp_path)
    assert list(lines) == names
    for name, line in lines.items():
        assert line["steps"] == 4
        assert line["parameters"] <= 3000
        assert 0 < line["bits_per_dim"] < 5
        saved = torch.load(tmp_path / f"digits-{name}-0.values.pt", weights_only=True)
        bits = fp.bits_per_dim(saved["values"], (1, 8, 8), levels=17)
        assert float(bits.mean()) == pytest.approx(line["bits_per_dim"], abs=1e-4)
        assert line["round_trip_error"] < 1e-3
        for kind in ("samples", "reconstructions", "interpolations"):
            assert plt.imread(tmp_path / f"digits-{name}-0.{kind}.png").ndim == 3
    log_dets = lines["published-truncated"]["log_dets"]
    assert 0 < log_dets["exact"] < 5
    assert log_dets["as_tested"][0] != 0
    assert lines["recommended"]["log_dets"]["as_tested"] == [0, 0]
    assert lines["glow"]["log_dets"] is None
    assert (tmp_path / "curves.png").exists()
    assert len(rows(tmp_path)) == 3
    first, *others = rows(tmp_path, "summary")
    assert first.endswith(" |  |")
    assert all(re.search(r"\| [+-]\d\.\d{3} ± \d\.\d{3} \|$", row) for row in others)


@pytest.mark.slow
def test_hybrid_models_are_trained_and_judged(tmp_path):
    images.main(["hybrid", *SMALL, "--features", "8", "--weights", "0", "1-over-D", "--out", str(tmp_path)])
    lines = found(tmp_path)
    assert list(lines) == [f"{stack}-lambda-{weight}" for weight in ("0", "1-over-D") for stack in stacks.STACKS]
    for line in lines.values():
        assert 0 <= line["accuracy"] <= 1
        assert 0 < line["bits_per_dim"] < 20
    assert len(rows(tmp_path)) == 8
    differences = [[bool(row.split(" | ")[i].strip(" |")) for i in (4, 6)] for row in rows(tmp_path, "summary")]
    assert differences == 2 * [[False, False], *3 * [[True, True]]]  # at each weight from the first


@pytest.mark.slow
def test_classifiers_are_certified_and_inverted(tmp_path):
    images.main(["classify", *SMALL, "--features", "8", "--bounds", "0.9", "0.5", "--out", str(tmp_path)])
    plain, *bounded = found(tmp_path).values()
    assert plain["config"]["bound"] is plain["certificate"] is plain["inverse_error"] is None
    assert [line["certificate"] for line in bounded] == pytest.approx([0.9, 0.5], rel=1e-5)
    assert all(line["inverse_error"] < 1e-4 for line in bounded)
    assert len({line["parameters"] for line in (plain, *bounded)}) == 1
    assert [row.split(" | ")[1] for row in rows(tmp_path)] == ["unconstrained", "bound-0.9", "bound-0.5"]


@pytest.mark.slow
def test_memory_is_measured_for_each_gradient(tmp_path):
    sizes = ["--event-shape", "1", "8", "8", "--scales", "1", "--blocks", "1", "--hidden", "32"]
    images.main(["memory", *sizes, "--batch", "256", "--terms", "8", "--out", str(tmp_path)])
    naive, neumann, recomputed, _ = (line["peak_mib"] for line in read_lines(tmp_path / "memory.jsonl"))
    assert naive > neumann > 0
    assert recomputed < naive


def test_runs_that_are_done_are_skipped_and_killed_ones_go_on(tmp_path, monkeypatch, capsys):
    command = ["density", *SMALL, "--models", "published", "--exact", "0", "--out", str(tmp_path), "--checkpoint", "0"]
    advance, killed = DensityRun.advance, []

    def once(run):
        if run.step == 3 and not killed:
            killed.append(run.step)
            raise KeyboardInterrupt
        return advance(run)

    monkeypatch.setattr(DensityRun, "advance", once)
    with pytest.raises(SystemExit) as end:
        images.main(command)
    assert end.value.code == 130
    assert "the same command with --resume goes on" in capsys.readouterr().out
    checkpoint = tmp_path / "digits-published-0.checkpoint.pt"
    assert torch.load(checkpoint, weights_only=True)["step"] == 3
    with pytest.raises(SystemExit):
        images.main(command)
    assert "pass --resume" in capsys.readouterr().err
    images.main([*command, "--resume"])
    (again,) = read_lines(tmp_path / "results.jsonl")
    assert not checkpoint.exists()
    monkeypatch.setattr(DensityRun, "advance", None)
    images.main([*command, "--resume"])
    monkeypatch.setattr(DensityRun, "advance", advance)
    images.main([*command[:-4], "--out", str(tmp_path / "whole")])
    (whole,) = read_lines(tmp_path / "whole" / "results.jsonl")
    assert [point[1:] for point in again["curve"]] == [point[1:] for point in whole["curve"]]
    assert again["bits_per_dim"] == whole["bits_per_dim"]


def test_noise_and_mirror_images_are_fresh_in_each_pass(digits, tmp_path):
    run = DensityRun({**CONFIG, "flips": True}, digits, Processes("cpu"), tmp_path)
    same = torch.zeros(200, dtype=torch.long)
    (first,), (second,) = run.told(same), run.told(same)
    assert not torch.equal(first, second)
    levels = (17 * first).floor().byte()
    plain = digits.train.pixels[0]
    mirrored = [torch.equal(image, plain.flip(-1)) for image in levels]
    assert 60 < sum(mirrored) < 140
    assert all(torch.equal(image, plain) for image, other in zip(levels, mirrored, strict=True) if not other)


def test_a_start_is_training_time_and_leaves_a_step(digits, tmp_path):
    run = DensityRun({**CONFIG, "seconds": 1e-9, "steps": 0}, digits, Processes("cpu"), tmp_path)
    assert run.elapsed == run.start_seconds > 1e-9
    assert len(list(run)) == 1
    run.restore()  # of the validation behind it


def test_processes_agree_on_the_time_of_a_start(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(DensityRun, "agreed", lambda run, values: [7.0 for _ in values])
    run = DensityRun(CONFIG, digits, Processes("cpu"), tmp_path)
    assert run.elapsed == run.start_seconds == 7.0


def test_mixed_precision_is_of_training_alone(digits, tmp_path):
    run = DensityRun({**CONFIG, "amp": True}, digits, Processes("cpu"), tmp_path)
    plain = DensityRun(CONFIG, digits, Processes("cpu"), tmp_path)
    x = run.batch(8)
    torch.manual_seed(0)
    mixed = float(run.batch_loss(x).detach())
    torch.manual_seed(0)
    full = float(plain.batch_loss(x).detach())
    assert mixed != full
    assert mixed == pytest.approx(full, rel=0.02)
    assert run.validation() == plain.validation()


@pytest.mark.parametrize("name", models.RECIPES)
def test_every_flow_is_of_the_size_that_was_asked_for_and_inverts(digits, name):
    flow = models.make(digits, {**CONFIG, "model": name, "parameters": 3000})
    x = digits.fixed(digits.train, 40)[0]
    flow.start(x)
    assert 1000 < sum(parameter.numel() for parameter in flow.parameters()) <= 3000
    (-flow(x[:8]).mean()).backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())
    flow.eval()
    with torch.no_grad():
        torch.testing.assert_close(flow.round_trip(x[:4]), x[:4], atol=1e-3, rtol=0)
        assert flow.sample(3).shape == (3, 1, 8, 8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stack", stacks.STACKS)
def test_hybrid_features_and_densities_are_those_of_the_flow(stack, channels):
    shape = (channels, 8, 8)
    some = models.Images("some", *3 * [None], levels=256, classes=3)
    object.__setattr__(some, "train", type("Part", (), {"pixels": torch.zeros(1, *shape)}))
    kind = stacks.STACKS[stack]
    flow = kind.make(some, CONFIG, 8)
    model = Classifier(flow, kind.views(flow, some), shape, 3, 0.5, 8, 2)
    x, labels = torch.rand(70, *shape), torch.randint(3, (70,))
    model.start(x)
    model.eval()
    log_prob, likelihood, right = Judged(model, density=True)(x, labels).unbind(1)
    y, ladj = flow(x)
    for image, value in zip(x[:2], ladj[:2], strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda image: flow(image[None])[0][0], image)
        exact = jacobian.reshape(image.numel(), -1).slogdet()[1]
        torch.testing.assert_close(value, exact, rtol=1e-2 if stack == "residual" else 1e-4, atol=1e-2)
    assert torch.allclose(log_prob, ladj + torch.distributions.Normal(0.0, 1.0).log_prob(y).sum((1, 2, 3)), rtol=1e-4)
    torch.testing.assert_close(model(x, labels), 0.5 * log_prob + likelihood, rtol=1e-4, atol=1e-3)
    assert set(right.tolist()) <= {0.0, 1.0}
    assert (likelihood < 0).all()


def test_without_weight_no_log_det_is_computed(digits, monkeypatch):
    flow = stacks.residual(digits, CONFIG, 8)
    model = Classifier(flow, {"transforms.0": None}, (1, 8, 8), 10, 0.0, 8, 1)
    x, labels = digits.fixed(digits.train, 70)
    monkeypatch.setattr(fp.Krylov, "__call__", None)
    monkeypatch.setattr(fp.ExactLogDet, "__call__", None)
    model.start(x)
    assert model(x, labels).shape == (70,)


def test_a_plain_block_has_no_inverse(digits):
    flow = nets.net(digits, {"activation": "elu", "bound": None, "blocks": 1}, 8)
    flow.start(torch.rand(70, 1, 8, 8))
    assert classify.inverted(flow, torch.rand(2, 1, 8, 8)) is None


def test_the_truncated_series_promises_more_than_the_exact_log_det(digits):
    """Table 3: bits/dim of a biased series are below the truth where even terms are cut off, those of ours are not."""
    recipe = models.Published(logdet=fp.PowerSeries(terms=fp.Truncated(1)))
    flow = models.of_transform(recipe(digits, CONFIG, 16), (4, 4, 4))
    x = digits.fixed(digits.train, 200)[0]
    flow.start(x)
    optimizer = torch.optim.Adam(flow.parameters(), 5e-3)
    for _ in range(60):
        loss = -flow(x[:64]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    about = {"event_shape": (1, 8, 8), "levels": 17}
    found = density.log_dets(flow, x, about)
    (bias, of_bias), (noise, of_noise) = found["as_tested"], found["unbiased"]
    assert bias < -2 * of_bias
    assert bias < -0.05
    assert abs(noise) < 2 * of_noise < 0.05


def test_pictures_show_pixels(tmp_path):
    image = torch.zeros(3, 1, 8, 8)
    image[0, 0, 0, 0] = 1.0
    image[1] = float("nan")
    pictures.save(image, tmp_path / "some.png", columns=2)
    drawn = plt.imread(tmp_path / "some.png")
    assert drawn.shape[:2] == (2 * 65, 2 * 65)
    assert drawn[:8, :8, :3].min() == 1.0
    assert drawn[8:64, :64, :3].max() == 0.0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["density", "--models", "none"], "--models must be of recommended, .*; got none"),
        (["density", "--exact", "-1"], "--exact must not be negative"),
        (["density", "--data", "none.npz"], "there is no file none.npz"),
        (["density", "--alpha", "0"], "--alpha must be positive"),
        (["density", "--batch", "0"], "--batch must be positive"),
        (["hybrid", "--weights", "2"], "--weights must be of 0, 1-over-D, 1; got 2"),
        (["hybrid", "--stacks", "dense"], "--stacks must be of residual, .*; got dense"),
        (["classify", "--bounds", "1"], r"--bounds must be in \(0, 1\); got 1.0"),
        (["classify", "--activation", "relu"], "--activation must be of elu, .*; got relu"),
        (["classify", "--steps", "1", "--seconds", "1"], "--steps is not allowed with --seconds"),
        (["memory", "--event-shape", "1", "6", "8", "--scales", "3"], "--event-shape needs sides that halve"),
        (["memory", "--terms", "0"], "--terms must be positive"),
    ],
)
def test_bad_options_are_refused(tmp_path, capsys, command, message):
    with pytest.raises(SystemExit) as end:
        images.main([*command, "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert re.fullmatch(f"error: {message}.*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_results_are_json_of_finite_numbers(tmp_path, monkeypatch):
    def overflow(*_):
        raise fp.NonFiniteError("overflow")

    monkeypatch.setattr(pictures, "draw_flow", lambda *_: None)
    missing = {"exact": 1.0, "as_tested": [None, None], "unbiased": [0.5, 0.25]}
    monkeypatch.setattr(density, "log_dets", lambda *_: missing)
    command = ["density", *SMALL, "--models", "glow", "--out", str(tmp_path)]
    make = models.make

    def broken(*arguments):
        flow = make(*arguments)
        flow._round_trip = overflow
        return flow

    monkeypatch.setattr("images.training.make", broken)
    images.main(command)
    (line,) = [json.loads(text) for text in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert line["round_trip_error"] is None
    assert "| 1.0000 | - ± - | +0.5000 ± 0.2500 |" in (tmp_path / "table.md").read_text()
    assert np.isfinite(line["bits_per_dim"])


def test_differences_are_of_the_same_images_and_seed(tmp_path):
    values = {("a", 0): [1.0, 3.0], ("a", 1): [2.0, 2.0], ("b", 1): [3.0, 5.0], ("b", 2): [9.0, 9.0]}
    lines = []
    for (model, seed), value in values.items():
        config = {"data": "some", "model": model, "seed": seed}
        lines.append({"config": config, "factor": 10})
        torch.save({"config": config, "values": torch.tensor(value)}, tmp_path / f"some-{model}-{seed}.values.pt")
    lines.append({"config": {"data": "some", "model": "c", "seed": 0}, "failed": "why"})
    table = summary(lines, tmp_path, {"value": lambda line, values: line["factor"] * values})
    a, b, c = (row.split(" | ") for row in table.splitlines()[2:])
    assert (a[2], a[3].split()[0], a[4].strip(" |")) == ("0 1", "20.000", "")
    assert (b[2], b[3].split()[0], b[4]) == ("1 2", "65.000", "+20.000 ± 20.000 |")
    assert (c[2], [cell.strip(" |") for cell in c[3:]]) == ("0", ["", ""])
