"""examples/uci.py: the published preprocessing, downloads from loopback, training that stops, resumes and is shared."""

import copy
import hashlib
import http.server
import importlib
import io
import itertools
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import h5py
import normflows as nf
import numpy as np
import pandas
import pytest
import requests
import torch

import flowplug as fp

EXAMPLES = Path(__file__).parents[1] / "examples"
MODULES = ("uci", "uci_data", "uci_models", "uci_report", "uci_training", "compare", "dense")

pytestmark = pytest.mark.usefixtures("users_defaults")


@pytest.fixture(scope="module")
def uci():
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("uci")
    sys.path.remove(str(EXAMPLES))
    for name in MODULES:
        sys.modules.pop(name, None)


def rows(*shape):
    return torch.randn(*shape, dtype=torch.float64, device="cpu").numpy()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def hdf5(**parts):
    file = io.BytesIO()
    with h5py.File(file, "w") as out:
        for part, array in parts.items():
            out[part] = array
    return file.getvalue()


def packed(folder, files):
    """data.tar.gz in the published layout; every file has the shadow that macOS adds."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "data.tar.gz", "w:gz") as tar:
        for name, content in files.items():
            shadow = f"{Path(name).parent}/._{Path(name).name}"
            for path, data in ((shadow, b"shadow"), (name, content)):
                member = tarfile.TarInfo(f"data/{path}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return folder / "data.tar.gz"


def load(uci, name, archive):
    return uci.uci_data.load(name, archive, "", None, archive.parent, "cpu")


def split(table):
    """The published split, a row at a time: the last tenth, then the last tenth of the rest, rounded down."""
    test = int(0.1 * len(table))
    val = int(0.1 * (len(table) - test))
    return (
        table[: len(table) - test - val],
        table[len(table) - test - val : len(table) - test],
        table[len(table) - test :],
    )


def scaled(parts, fitted, ddof):
    return [(part - fitted.mean(0)) / fitted.std(0, ddof=ddof) for part in parts]


def check(data, parts):
    for part, wanted in zip((data.train, data.val, data.test), parts, strict=True):
        assert part.dtype == torch.float32
        np.testing.assert_allclose(part.numpy(), wanted, rtol=1e-5, atol=1e-5)
    assert not data.published


class TestPreprocessing:
    def test_power(self, uci, tmp_path):
        raw = rows(57, 8)
        data = load(uci, "POWER", packed(tmp_path, {"power/data.npy": npy(raw)}))
        stream = np.random.RandomState(42)  # the published one, drawn number by number
        table = raw[stream.permutation(57)][:, [0, 2, 4, 5, 6, 7]]
        table[:, 1] += [0.01 * stream.rand() for _ in range(57)]
        table[:, 0] += [0.001 * stream.rand() for _ in range(57)]
        for row in table:
            row[2:5] += [stream.rand() for _ in range(3)]
        parts = split(table)
        assert [len(part) for part in parts] == [47, 5, 5]
        check(data, scaled(parts, table[:52], 0))

    def test_gas(self, uci, tmp_path):
        sensors = rows(60, 10)
        sensors[:, 0] = sensors[:, 2] + 0.01 * sensors[:, 0]
        sensors[:, 1] = 3 * sensors[:, 2] + 0.01 * sensors[:, 1]
        sensors[:, 3] = -sensors[:, 2] + 0.01 * sensors[:, 3]  # correlated below -0.98, and kept
        frame = pandas.DataFrame(sensors, columns=[f"s{i}" for i in range(10)])
        for i, name in enumerate(("Time", "Meth", "Eth")):
            frame.insert(i, name, rows(60))
        data = load(uci, "GAS", packed(tmp_path, {"gas/ethylene_CO.pickle": pickle.dumps(frame)}))
        kept = sensors[:, 2:]
        check(data, scaled(split(kept), kept, 1))

    def test_hepmass(self, uci, tmp_path):
        labels, train, test = np.arange(120) % 2, rows(120, 27), rows(40, 28)
        collisions = train[1::2]
        collisions[:6, 3:9] = -9  # the smallest value six times: dropped
        collisions[:5, 9] = -9  # five times: kept
        collisions[:20, 10] = 9  # the largest value: kept
        train[:12:2, 11] = -9  # among the background: kept
        files = {}
        for part, table, classes in (("train", train, labels), ("test", test, labels[:40])):
            frame = pandas.DataFrame(np.column_stack([classes, table]))
            files[f"hepmass/1000_{part}.csv"] = frame.to_csv(index=False, float_format="%.17e").encode()
        data = load(uci, "HEPMASS", packed(tmp_path, files))
        kept = [i for i in range(27) if not 3 <= i < 9]
        fitted = collisions[:, kept]
        check(data, scaled((fitted[:54], fitted[54:], test[1::2, kept]), fitted, 1))

    def test_miniboone(self, uci, tmp_path):
        raw = rows(50, 43)
        data = load(uci, "MINIBOONE", packed(tmp_path, {"miniboone/data.npy": npy(raw)}))
        check(data, scaled(split(raw), raw[:45], 0))

    def test_bsds300(self, uci, tmp_path):
        parts = [3 + rows(n, 63) for n in (20, 5, 6)]
        content = hdf5(**dict(zip(("train", "validation", "test"), parts, strict=True)))
        check(load(uci, "BSDS300", packed(tmp_path, {"BSDS300/BSDS300.hdf5": content})), parts)

    def test_other_files_are_standardised(self, uci, tmp_path):
        np.savez(tmp_path / "table.npz", train=5 + rows(50, 3), val=rows(9, 3), test=rows(8, 3))
        data = load(uci, str(tmp_path / "table.npz"), tmp_path / "data.tar.gz")
        assert float(data.train.mean().abs()) < 1e-5
        assert not data.published

    def test_one_table_needs_no_file(self, uci, tmp_path):
        data = load(uci, "breast-cancer", tmp_path / "data.tar.gz")
        assert (data.name, data.train.shape, data.published) == ("breast-cancer", (341, 30), False)

    def test_published_tables_are_those_of_the_published_size(self, uci, tmp_path, monkeypatch):
        archive = packed(tmp_path, {"miniboone/data.npy": npy(rows(50, 43))})
        recipe = uci.uci_data.RECIPES["MINIBOONE"]
        object.__setattr__(recipe, "rows", (41, 4, 5))
        try:
            assert load(uci, "MINIBOONE", archive).published
        finally:
            object.__setattr__(recipe, "rows", (29_556, 3_284, 3_648))

    def test_a_new_archive_is_read_anew(self, uci, tmp_path):
        archive = packed(tmp_path, {"miniboone/data.npy": npy(rows(50, 43))})
        first = load(uci, "MINIBOONE", archive)
        made = (tmp_path / "MINIBOONE.npz").stat().st_mtime_ns
        assert torch.equal(load(uci, "MINIBOONE", archive).train, first.train)
        assert (tmp_path / "MINIBOONE.npz").stat().st_mtime_ns == made
        packed(tmp_path, {"miniboone/data.npy": npy(rows(60, 43))})
        os.utime(archive, ns=(made + 10**9, made + 10**9))
        assert len(load(uci, "MINIBOONE", archive).test) == 6


FINE = {"miniboone/data.npy": npy(np.ones((50, 43)) * np.arange(50)[:, None])}


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("POWER", FINE, r"lacks \['power/data.npy'\]; it holds"),
        ("POWER", {"power/data.npy": npy(np.ones((50, 6)))}, r"shape \(50, 6\), not \(rows, 8\)"),
        ("POWER", {"power/data.npy": b"\x93NUMPY"}, "cannot be read as POWER"),
        ("MINIBOONE", {"miniboone/data.npy": npy(rows(50, 42))}, "must have 43 columns"),
        ("MINIBOONE", {"miniboone/data.npy": npy(np.ones((50, 43)))}, "of finite numbers"),
        ("GAS", {"gas/ethylene_CO.pickle": b"damaged"}, "cannot be read as GAS"),
        ("GAS", {"gas/ethylene_CO.pickle": pickle.dumps(pandas.DataFrame({"Time": [1.0]}))}, "GAS.*Meth"),
        ("HEPMASS", {"hepmass/1000_train.csv": b"l,a\n1,2\n"}, r"lacks \['hepmass/1000_test.csv'\]"),
        ("HEPMASS", dict.fromkeys(("hepmass/1000_train.csv", "hepmass/1000_test.csv"), b"l,a\n1,2\n"), "one more"),
        ("BSDS300", {"BSDS300/BSDS300.hdf5": hdf5(train=np.ones((3, 63)))}, "BSDS300.*validation"),
    ],
)
# NumPy's, as some of these tables hold constant columns or no row.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_archives_of_other_content_are_refused(uci, tmp_path, name, files, message):
    with pytest.raises(ValueError, match=message):
        load(uci, name, packed(tmp_path, files))
    assert [path.name for path in tmp_path.iterdir()] == ["data.tar.gz"]


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"x" + b[1:], lambda b: b[:200] + b"\0" * 99 + b[299:]]
)
def test_damaged_archives_are_refused(uci, tmp_path, damage):
    archive = packed(tmp_path, {"miniboone/data.npy": npy(rows(50, 43))})
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(ValueError, match=r"data\.tar\.gz is damaged"):
        load(uci, "MINIBOONE", archive)
    assert [path.name for path in tmp_path.iterdir()] == ["data.tar.gz"]


@pytest.mark.parametrize(("name", "member", "package"), [
    ("GAS", "gas/ethylene_CO.pickle", "pandas"), ("BSDS300", "BSDS300/BSDS300.hdf5", "h5py"),
])  # fmt: skip
def test_a_missing_package_is_named(uci, tmp_path, monkeypatch, name, member, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"{name} is stored in a format of {package}: pip install {package}"):
        load(uci, name, packed(tmp_path, {member: b""}))


def test_files_are_replaced_whole_or_not_at_all(uci, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def interrupted():
        with uci.uci_data.replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    with uci.uci_data.replacing(path) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [path]


class Server(http.server.ThreadingHTTPServer):
    """Serves bytes, in ranges if it can; the first answer breaks off after so many."""

    def __init__(self, content, *, breaks_after, ranges):
        self.content, self.breaks_after, self.ranges, self.asked = content, breaks_after, ranges, []
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}/data.tar.gz"


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.headers["Range"])
        first = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if server.ranges else 0
        if first and first >= len(server.content):
            self.send_error(416)
            return
        self.send_response(206 if server.ranges else 200)
        self.send_header("Content-Length", str(len(server.content) - first))
        self.end_headers()
        end = server.breaks_after if len(server.asked) == 1 else None
        self.wfile.write(server.content[first:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def start(content, *, breaks_after=None, ranges=True):
        servers.append(Server(content, breaks_after=breaks_after, ranges=ranges))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class TestDownload:
    content = bytes(range(256)) * 2000
    checksum = "md5:" + hashlib.md5(content).hexdigest()

    @pytest.mark.parametrize("ranges", [True, False])
    def test_goes_on_where_it_broke_off(self, uci, tmp_path, serve, ranges):
        server = serve(self.content, breaks_after=300_000, ranges=ranges)
        with pytest.raises(requests.RequestException):
            uci.uci_data.download(server.url, self.checksum, tmp_path)
        (part,) = tmp_path.iterdir()
        have = part.stat().st_size
        assert part.name == "data.tar.gz.part"
        assert 200_000 < have <= 300_000
        path = uci.uci_data.download(server.url, self.checksum, tmp_path)
        assert path.read_bytes() == self.content
        assert server.asked == ["bytes=0-", f"bytes={have}-"]
        assert list(tmp_path.iterdir()) == [path]
        assert uci.uci_data.download(server.url, self.checksum, tmp_path) == path
        assert len(server.asked) == 2

    def test_a_wrong_checksum_leaves_nothing(self, uci, tmp_path, serve):
        with pytest.raises(ValueError, match="does not match"):
            uci.uci_data.download(serve(b"other").url, self.checksum, tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_part_that_is_too_long_is_deleted(self, uci, tmp_path, serve):
        (tmp_path / "data.tar.gz.part").write_bytes(2 * self.content)
        server = serve(self.content)
        with pytest.raises(requests.RequestException, match="now deleted: run this again"):
            uci.uci_data.download(server.url, self.checksum, tmp_path)
        assert uci.uci_data.download(server.url, self.checksum, tmp_path).read_bytes() == self.content

    def test_an_absent_file_is_an_error(self, uci, tmp_path, serve):
        server = serve(b"")
        with pytest.raises(requests.RequestException):
            uci.uci_data.download(f"http://127.0.0.1:{server.server_port + 1}/", None, tmp_path)

    def test_tables_are_read_from_the_download(self, uci, tmp_path, serve):
        content = packed(tmp_path / "there", {"miniboone/data.npy": npy(rows(50, 43))}).read_bytes()
        checksum = f"md5:{hashlib.md5(content).hexdigest()}"
        data = uci.uci_data.load("MINIBOONE", None, serve(content).url, checksum, tmp_path / "here", "cpu")
        assert data.test.shape == (5, 43)


class TestModels:
    @pytest.mark.parametrize("name", ["zuko-nsf+residual", "nflows-rqs", "normflows-realnvp+dense", "residual"])
    def test_all_have_as_many_parameters(self, uci, name):
        assert 0.9 < uci.size(uci.uci_models.make(name, 6, 20_000)) / 20_000 <= 1

    def test_a_dense_flow_is_as_deep_as_it_may(self, uci):
        assert 0.9 < uci.size(uci.uci_models.make("dense", 30, 20_000)) / 20_000 <= 1
        assert uci.size(uci.uci_models.make("dense", 3, 20_000)) == 32 * 12

    def test_all_train_copy_and_invert(self, uci):
        x = torch.randn(32, 5)
        for name in uci.uci_models.NAMES:
            density = uci.uci_models.make("dense", 5, 200) if name == "dense" else uci.uci_models.MODELS[name](5, 10)
            density.start(x)
            other = copy.deepcopy(density)
            (-density(x).mean()).backward()
            assert all(p.grad is not None for p in density.parameters() if p.requires_grad), name
            density.eval()
            other.eval()
            with torch.no_grad():
                before = other(x)
                for p in density.parameters():
                    p.add_(0.01)
                density.after_update()
                assert (density(x) - before).abs().max() > 0.01, name
                torch.testing.assert_close(other(x), before, atol=1e-3, rtol=0, msg=name)
                assert density.sample(4).shape == (4, 5), name
                torch.testing.assert_close(density.round_trip(x), x, atol=1e-2, rtol=0, msg=name)

    def test_normflows_bounds_hold_after_an_update(self, uci):
        density = uci.uci_models.MODELS["normflows-residual"](5, 10)
        layers = [part for part in density.modules() if isinstance(part, nf.nets.lipschitz.InducedNormLinear)]
        for layer in layers:
            layer.weight.data.normal_()
        for _ in range(20):  # power iterations from a far start
            density.after_update()
        norms = [torch.linalg.matrix_norm(layer.compute_weight(update=False).detach(), 2) for layer in layers]
        assert len(norms) == 24
        assert max(norms) < 1

    @pytest.mark.parametrize("host", ["zuko-maf", "nflows-rqs", "normflows-realnvp"])
    def test_flows_with_dense_transforms_whiten_at_first(self, uci, host):
        x = 5 + torch.randn(4000, 5) @ (torch.eye(5) + 0.2 * torch.randn(5, 5))
        density = uci.uci_models.MODELS[f"{host}+dense"](5, 10)
        seen = []
        for part in density.modules():
            if isinstance(part, fp.Whitening):
                part.register_forward_hook(lambda _, inputs, outputs: seen.append((inputs[0], outputs[0])))
        density.start(x)
        assert len(seen) == 3
        inputs, outputs = seen[0]
        assert torch.equal(inputs, x)
        torch.testing.assert_close(outputs.mT.cov(), torch.eye(5), atol=0.02, rtol=0)
        torch.testing.assert_close(outputs.mean(0), torch.zeros(5), atol=1e-3, rtol=0)

    @pytest.mark.parametrize(
        ("pattern", "residuals", "denses"), [("+residual", 2, 0), ("+dense", 0, 3), ("+residual+dense", 2, 2)]
    )
    def test_mixed_flows_have_the_transforms_they_name(self, uci, pattern, residuals, denses):
        for host in uci.uci_models.HOSTS:
            parts = list(uci.uci_models.MODELS[host + pattern](5, 10).modules())
            assert sum(isinstance(part, fp.ResidualTransform) for part in parts) == residuals
            assert sum(isinstance(part, fp.DenseTransform) for part in parts) == denses

    @pytest.mark.parametrize("pattern", ["", "+residual", "+dense", "+residual+dense"])
    def test_couplings_alternate(self, uci, pattern):
        parts = uci.uci_models.MODELS["nflows-rqs" + pattern](5, 10).modules()
        masks = [part.transform_features.tolist() for part in parts if hasattr(part, "transform_features")]
        assert len(masks) >= 3
        assert all(sorted(one + other) == [0, 1, 2, 3, 4] for one, other in itertools.pairwise(masks))


@pytest.fixture
def table(tmp_path):
    """A table of 6 correlated features: a residual transform trains on a random estimate of its log-det."""
    x = torch.randn(700, 6, device="cpu")
    x[:, 1:] += torch.sin(2 * x[:, :-1])
    np.savez(tmp_path / "table.npz", train=x[:500].numpy(), val=x[500:600].numpy(), test=x[600:].numpy())
    return tmp_path / "table.npz"


def arguments(table, out, *more):
    fixed = ["--data", table, "--out", out, "--parameters", 1500, "--batch", 64, "--warmup", 5]
    return [str(argument) for argument in (*fixed, *more)]


def lines(out):
    def refuse(constant):
        raise ValueError(constant)

    return [json.loads(line, parse_constant=refuse) for line in (out / "results.jsonl").read_text().splitlines()]


def outcome(line):
    """What does not depend on the clock."""
    return line["test_log_likelihood"], line["validation"], [point[1:] for point in line["curve"]]


def training(uci, table, tmp_path, model="zuko-maf", **changes):
    config = {
        "data": "table", "model": model, "seed": 0, "seconds": 600.0, "steps": 20, "parameters": 1500, "batch": 64,
        "lr": 2e-3, "weight_decay": 0.0, "warmup": 5, "clip": 100.0, "decay": 0.999, "checks": 40, "patience": 15,
        "amp": False, "processes": 1,
    }  # fmt: skip
    data = load(uci, str(table), table)
    return uci.Training({**config, **changes}, data, uci.Processes("cpu"), tmp_path)


class TestTraining:
    def test_the_grid_is_run_and_reported(self, uci, table, tmp_path):
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
        assert (out / "table.md").read_text().count("\n") == 6
        written = {path.name for path in out.iterdir() if path.suffix != ".pt"}
        assert written == {"curves.png", "results.jsonl", "summary.md", "table.md"}
        for line in found:
            saved = torch.load(out / "table-{model}-{seed}.values.pt".format(**line["config"]), weights_only=True)
            assert saved["config"] == line["config"]
            assert float(saved["values"].mean()) == pytest.approx(line["test_log_likelihood"], abs=1e-5)

    def test_runs_that_are_done_are_not_repeated(self, uci, table, tmp_path, monkeypatch):
        command = arguments(table, tmp_path / "out", "--models", "zuko-maf", "--steps", 3)
        uci.main(command)
        before = lines(tmp_path / "out")
        with pytest.raises(SystemExit):
            uci.main(command)
        monkeypatch.setattr(uci, "run", None)
        uci.main([*command, "--resume"])
        assert lines(tmp_path / "out") == before

    def test_a_killed_run_ends_in_the_same_bits(self, uci, table, tmp_path):
        options = ["--models", "zuko-maf+residual", "--steps", 80, "--checkpoint", 0]
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        checkpoint = killed / "table-zuko-maf+residual-0.checkpoint.pt"
        command = [sys.executable, EXAMPLES / "uci.py", *arguments(table, killed, *options)]
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

    def test_the_noise_of_normflows_goes_on_too(self, uci, table, tmp_path, monkeypatch):
        monkeypatch.setattr(uci.uci_models, "make", lambda *_: uci.uci_models.MODELS["normflows-residual"](6, 8))
        run = training(uci, table, tmp_path, steps=8)
        for _, done in zip(run.run(1e9), range(1, 9), strict=False):
            if done == 4:
                run.save()
        again = training(uci, table, tmp_path, steps=8)
        again.resume()
        list(again.run(1e9))
        assert again.step == run.step == 8
        state = run.density.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in again.density.state_dict().items())

    def test_checkpoints_of_other_options_are_refused(self, uci, table, tmp_path):
        training(uci, table, tmp_path, lr=1e-3).save()
        with pytest.raises(SystemExit):
            uci.main(arguments(table, tmp_path, "--steps", 20))
        with pytest.raises(ValueError, match=r"run with other \['lr'\]: use another --out"):
            training(uci, table, tmp_path).resume()

    def test_two_processes_train_as_one(self, uci, table, tmp_path):
        with np.load(table) as file:  # up to 4 features log-dets are exact in training: no process draws its own
            np.savez(table, **{part: file[part][:, :4] for part in file.files})
        model = "zuko-maf+residual+dense"
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", EXAMPLES / "uci.py"]
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

    def test_a_loss_that_is_no_number_stops_the_run_alone(self, uci, table, tmp_path, monkeypatch):
        make = uci.uci_models.make

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

        monkeypatch.setattr(uci.uci_models, "make", broken)
        uci.main(arguments(table, tmp_path / "out", "--models", "zuko-maf", "normflows-realnvp", "--steps", 10))
        failed, fine = lines(tmp_path / "out")
        assert "the loss of step 3 is nan" in failed["failed"]
        assert fine["steps"] == 10
        assert "step 3 is nan" in (tmp_path / "out" / "table.md").read_text()
        saved = torch.load(tmp_path / "out" / "table-zuko-maf-0.failure.pt", weights_only=True)
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randint(500, (64,), generator=generator) for _ in range(4)][-1]
        assert saved["step"] == 3
        assert torch.equal(saved["batch"], load(uci, str(table), table).train[drawn])
        assert all(value.isfinite().all() for value in saved["model"].values())

    def test_a_gradient_that_is_no_number_stops_the_run_before_the_step(self, uci, table, tmp_path):
        run = training(uci, table, tmp_path)
        before = copy.deepcopy(run.density.state_dict())
        next(run.density.parameters()).register_hook(lambda gradient: gradient * float("inf"))
        with pytest.raises(FloatingPointError, match="the norm of the gradient of step 0 is"):
            next(run.run(1e9))
        assert all(torch.equal(value, before[key]) for key, value in run.density.state_dict().items())
        assert run.failure.exists()

    def test_what_is_not_finite_is_null_in_the_results(self, uci, table, tmp_path):
        run, calls = training(uci, table, tmp_path), []

        def overflow_at_first(flow, x):
            calls.append(x)
            return flow().log_prob(x) if len(calls) > 1 else x.new_full((len(x),), float("nan"))

        def diverge(flow, x):
            raise fp.NonFiniteError("overflow")

        run.average.module._log_prob, run.average.module._round_trip = overflow_at_first, diverge
        list(run.run(1e9))
        line = {"config": run.config, "published": False, **uci.measured(run)}
        uci.report([line], tmp_path)
        assert lines(tmp_path) == [line]
        assert [point[2] is None for point in line["curve"]] == [True] + 19 * [False]
        assert line["round_trip_error"] is line["sampling_ms"] is None
        assert "| - | - |" in (tmp_path / "table.md").read_text()

    @pytest.mark.parametrize("error", [fp.NonFiniteError, fp.SingularMatrixError])
    def test_validation_survives_rows_that_overflow(self, uci, table, tmp_path, error):
        run = training(uci, table, tmp_path)

        def overflow(flow, x):
            raise error("overflow")

        run.average.module._log_prob = overflow
        list(run.run(1e9))
        assert run.step == 15  # patience
        with pytest.raises(FloatingPointError, match="no validation log-likelihood was finite"):
            uci.measured(run)

    def test_the_best_average_is_tested_and_patience_ends(self, uci, table, tmp_path):
        run = training(uci, table, tmp_path, steps=40, patience=3)
        values, states = iter([0.0, 2.0, 1.0, 1.9, 1.5, 9.0]), []

        def scripted(density, _):
            states.append(copy.deepcopy(density.state_dict()))
            value = next(values)
            return torch.tensor([value - 1, value + 1])

        run.processes.log_likelihoods = scripted
        list(run.run(1e9))
        assert (run.step, run.best) == (5, 2.0)
        assert all(torch.equal(value, run.best_state[key]) for key, value in states[1].items())
        assert any(not torch.equal(value, run.best_state[key]) for key, value in states[2].items())
        assert uci.measured(run)["test_log_likelihood"] == 9
        assert all(torch.equal(value, run.best_state[key]) for key, value in states[-1].items())

    def test_the_average_is_polyaks(self, uci, table, tmp_path):
        run = training(uci, table, tmp_path, decay=0.5)
        wanted = None
        for count, _ in enumerate(run.run(1e9)):
            now = torch.nn.utils.parameters_to_vector(run.density.parameters()).detach()
            decay = min(0.5, (1 + count) / (10 + count))
            wanted = now if wanted is None else decay * wanted + (1 - decay) * now
            average = torch.nn.utils.parameters_to_vector(run.average.module.parameters())
            torch.testing.assert_close(average, wanted, atol=1e-6, rtol=0)
        assert count == 19

    def test_weights_decay_beside_the_gradient(self, uci, table, tmp_path):
        runs = [training(uci, table, tmp_path, weight_decay=decay, warmup=1, steps=100) for decay in (0.0, 5.0)]
        start = [parameter.detach().clone() for parameter in runs[0].density.parameters()]
        for run in runs:
            next(run.run(1e9))
        for before, plain, decayed in zip(start, *(run.density.parameters() for run in runs), strict=True):
            torch.testing.assert_close(plain - decayed, 2e-3 * 5.0 * before, rtol=0, atol=1e-6)

    def test_the_learning_rate_warms_up_and_falls_to_zero(self, uci, table, tmp_path):
        run = training(uci, table, tmp_path)
        rates = [run.optimizer.param_groups[0]["lr"] for _ in run.run(1e9)]
        wanted = [2e-3 * min(1, (i + 1) / 5) * (1 + np.cos(np.pi * i / 20)) / 2 for i in range(20)]
        assert rates == pytest.approx(wanted)

    def test_seconds_end_a_run(self, uci, table, tmp_path):
        start = time.perf_counter()
        run = training(uci, table, tmp_path, steps=0, seconds=0.5)
        list(run.run(1e9))
        assert 0.5 <= run.elapsed < time.perf_counter() - start
        assert 1 < run.checks <= 40
        assert run.curve[-1][:2] == [run.elapsed, run.step]

    def test_validations_are_spread_over_a_run_and_end_it(self, uci, table, tmp_path):
        run = training(uci, table, tmp_path, checks=4)
        list(run.run(1e9))
        assert [step for _, step, _, _ in run.curve] == [5, 10, 15, 20]

    def test_mixed_precision_is_of_bfloat16(self, uci, table, tmp_path):
        full, mixed = (
            [next(training(uci, table, tmp_path, model, amp=amp).run(1e9)) for model in ("zuko-maf", "dense")]
            for amp in (False, True)
        )
        assert full != mixed
        assert mixed == pytest.approx(full, rel=0.02)


def environment():
    root = EXAMPLES.parent
    path = os.pathsep.join([str(root), str(root / "adapters"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, "the run ended too soon"
        time.sleep(0.01)


def line(data, *, published):
    numbers = dict.fromkeys(("test_log_likelihood", "two_standard_errors", "steps_per_second", "peak_memory_mib"), 1.0)
    config = {"data": data, "model": "dense", "seed": 0}
    return {"config": config, "published": published, **numbers, "parameters": 5, "steps": 2, "sampling_ms": None,
            "round_trip_error": None}  # fmt: skip


class TestTable:
    def test_published_figures_stand_beside_published_data_only(self, uci):
        report = uci.table([line("MINIBOONE", published=False), line("table", published=False)])
        assert "published" not in report
        assert len(report.splitlines()) == 4
        report = uci.table([line("MINIBOONE", published=True), line("table", published=False)])
        assert len(report.splitlines()) == 2 + 1 + 8 + 1
        assert "| MINIBOONE | Gresele et al. (2020), published | | -13.372 ± 0.450 |" in report
        assert "| MINIBOONE | MAF MoG (5), published | | -11.995 ± 0.462 |" in report

    def test_rows_have_a_cell_for_each_column(self, uci):
        failed = {"config": {"data": "t", "model": "dense", "seed": 0}, "published": False, "failed": "why"}
        report = uci.table([line("POWER", published=True), failed])
        assert len({row.count("|") for row in report.splitlines()}) == 1


def saved_line(out, model, seed, values, lr=1e-3, validation=0.0):
    config = {"data": "t", "model": model, "seed": seed, "lr": lr}
    torch.save({"config": config, "values": torch.tensor(values)}, out / f"t-{model}-{seed}.values.pt")
    return {"config": config, "steps": 10 + seed, "validation": validation}


class TestSummary:
    def test_differences_are_of_rows_and_their_error_of_rows_and_seeds(self, uci, tmp_path):
        lines = [
            saved_line(tmp_path, "zuko-maf", 0, [0.0, 100.0, 50.0, 7.0]),
            saved_line(tmp_path, "zuko-maf", 1, [1.0, 101.0, 51.0, 8.0]),
            saved_line(tmp_path, "zuko-maf+dense", 1, [4.0, 106.0, 54.0, 13.0]),  # + 3 5 3 5
            saved_line(tmp_path, "zuko-maf+dense", 0, [1.0, 103.0, 51.0, 10.0]),  # + 1 3 1 3
            saved_line(tmp_path, "zuko-maf+dense", 2, [9.0, 9.0, 9.0, 9.0]),  # without its plain flow
        ]
        *_, plain, row = uci.summary(lines, tmp_path).splitlines()
        mean = 2 * ((0.5**2 + 100.5**2 + 50.5**2 + 7.5**2 - 4 * 39.75**2) / 3 / 4 + 0.5 / 2) ** 0.5
        gain = 2 * (4 / 3 / 4 + 2 / 2) ** 0.5  # means of rows 2 4 2 4, of seeds 4 2
        assert plain == f"| t | zuko-maf | 0 1 | 0.000 | 39.750 ± {mean:.3f} | 10 |  |  |"
        assert row.startswith("| t | **zuko-maf+dense** | 1 0 2 | 0.000 | 31.")
        assert row.endswith(f" | 11 | +3.000 ± {gain:.3f} | +4.00 +2.00 |")

    def test_one_seed_has_the_error_of_its_rows(self, uci, tmp_path):
        lines = [
            saved_line(tmp_path, "residual", 0, [1.0, 3.0, 1.0, 3.0]),
            saved_line(tmp_path, "normflows-residual", 0, [0.0, 0.0, 0.0, 0.0]),
        ]
        *_, row, _ = uci.summary(lines, tmp_path).splitlines()
        assert row.split(" | ")[2:] == ["0", "0.000", "2.000 ± 1.155", "10", "+2.000 ± 1.155", "+2.00 |"]

    def test_the_best_mixture_on_validation_rows_is_in_bold(self, uci, tmp_path):
        models = {"zuko-maf": 9, "zuko-maf+dense": 1, "zuko-maf+residual": 2, "nflows-rqs+dense": 0, "dense": 5}
        lines = [saved_line(tmp_path, model, 0, [0.0, 1.0], validation=v) for model, v in models.items()]
        bold = [row.split(" | ")[1] for row in uci.summary(lines, tmp_path).splitlines() if "**" in row]
        assert bold == ["**zuko-maf+residual**", "**nflows-rqs+dense**"]

    def test_values_of_other_options_and_failed_runs_are_not_compared(self, uci, tmp_path):
        old = saved_line(tmp_path, "zuko-maf", 0, [0.0, 1.0])
        saved_line(tmp_path, "zuko-maf", 0, [5.0, 5.0], lr=2e-3)
        lines = [old, saved_line(tmp_path, "zuko-maf+dense", 0, [1.0, 1.0])]
        failed = {"config": {"data": "t", "model": "zuko-maf+residual", "seed": 0, "lr": 1e-3}, "failed": "why"}
        rows = uci.summary([*lines, failed], tmp_path).splitlines()[2:]
        assert [row.count("±") for row in rows] == [0, 1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "a/x.npz", "b/x.npz"], "different names"),
        (["--batch", "0"], "--batch must be positive; got 0"),
        (["--weight-decay", "-1"], "--weight-decay must not be negative; got -1.0"),
        (["--decay", "1"], r"--decay in \[0, 1\)"),
        (["--steps", "5", "--seconds", "5"], "not allowed with"),
        (["--models", "none"], "invalid choice"),
    ],
)
def test_bad_options_are_refused(uci, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        uci.main([*options, "--out", str(tmp_path / "out")])
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
