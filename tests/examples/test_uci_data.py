"""examples/uci/data.py: the published preprocessing, and downloads, from loopback."""

import hashlib
import http.server
import io
import os
import pickle
import sys
import tarfile
import threading
from pathlib import Path

import h5py
import numpy as np
import pandas
import pytest
import requests
import torch

import uci.data


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


def load(name, archive):
    return uci.data.load(name, archive, "", None, archive.parent, "cpu")


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
    def test_power(self, tmp_path):
        raw = rows(57, 8)
        data = load("POWER", packed(tmp_path, {"power/data.npy": npy(raw)}))
        stream = np.random.RandomState(42)  # the published one, drawn number by number
        table = raw[stream.permutation(57)][:, [0, 2, 4, 5, 6, 7]]
        table[:, 1] += [0.01 * stream.rand() for _ in range(57)]
        table[:, 0] += [0.001 * stream.rand() for _ in range(57)]
        for row in table:
            row[2:5] += [stream.rand() for _ in range(3)]
        parts = split(table)
        assert [len(part) for part in parts] == [47, 5, 5]
        check(data, scaled(parts, table[:52], 0))

    def test_gas(self, tmp_path):
        sensors = rows(60, 10)
        sensors[:, 0] = sensors[:, 2] + 0.01 * sensors[:, 0]
        sensors[:, 1] = 3 * sensors[:, 2] + 0.01 * sensors[:, 1]
        sensors[:, 3] = -sensors[:, 2] + 0.01 * sensors[:, 3]  # correlated below -0.98, and kept
        frame = pandas.DataFrame(sensors, columns=[f"s{i}" for i in range(10)])
        for i, name in enumerate(("Time", "Meth", "Eth")):
            frame.insert(i, name, rows(60))
        data = load("GAS", packed(tmp_path, {"gas/ethylene_CO.pickle": pickle.dumps(frame)}))
        kept = sensors[:, 2:]
        check(data, scaled(split(kept), kept, 1))

    def test_hepmass(self, tmp_path):
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
        data = load("HEPMASS", packed(tmp_path, files))
        kept = [i for i in range(27) if not 3 <= i < 9]
        fitted = collisions[:, kept]
        check(data, scaled((fitted[:54], fitted[54:], test[1::2, kept]), fitted, 1))

    def test_miniboone(self, tmp_path):
        raw = rows(50, 43)
        data = load("MINIBOONE", packed(tmp_path, {"miniboone/data.npy": npy(raw)}))
        check(data, scaled(split(raw), raw[:45], 0))

    def test_bsds300(self, tmp_path):
        parts = [3 + rows(n, 63) for n in (20, 5, 6)]
        content = hdf5(**dict(zip(("train", "validation", "test"), parts, strict=True)))
        check(load("BSDS300", packed(tmp_path, {"BSDS300/BSDS300.hdf5": content})), parts)

    def test_other_files_are_standardised(self, tmp_path):
        np.savez(tmp_path / "table.npz", train=5 + rows(50, 3), val=rows(9, 3), test=rows(8, 3))
        data = load(str(tmp_path / "table.npz"), tmp_path / "data.tar.gz")
        assert float(data.train.mean().abs()) < 1e-5
        assert not data.published

    def test_one_table_needs_no_file(self, tmp_path):
        data = load("breast-cancer", tmp_path / "data.tar.gz")
        assert (data.name, data.train.shape, data.published) == ("breast-cancer", (341, 30), False)

    def test_published_tables_are_those_of_the_published_size(self, tmp_path, monkeypatch):
        archive = packed(tmp_path, {"miniboone/data.npy": npy(rows(50, 43))})
        recipe = uci.data.RECIPES["MINIBOONE"]
        object.__setattr__(recipe, "rows", (41, 4, 5))
        try:
            assert load("MINIBOONE", archive).published
        finally:
            object.__setattr__(recipe, "rows", (29_556, 3_284, 3_648))

    def test_a_new_archive_is_read_anew(self, tmp_path):
        archive = packed(tmp_path, {"miniboone/data.npy": npy(rows(50, 43))})
        first = load("MINIBOONE", archive)
        made = (tmp_path / "MINIBOONE.npz").stat().st_mtime_ns
        assert torch.equal(load("MINIBOONE", archive).train, first.train)
        assert (tmp_path / "MINIBOONE.npz").stat().st_mtime_ns == made
        packed(tmp_path, {"miniboone/data.npy": npy(rows(60, 43))})
        os.utime(archive, ns=(made + 10**9, made + 10**9))
        assert len(load("MINIBOONE", archive).test) == 6


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
def test_archives_of_other_content_are_refused(tmp_path, name, files, message):
    with pytest.raises(ValueError, match=message):
        load(name, packed(tmp_path, files))
    assert [path.name for path in tmp_path.iterdir()] == ["data.tar.gz"]


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"x" + b[1:], lambda b: b[:200] + b"\0" * 99 + b[299:]]
)
def test_damaged_archives_are_refused(tmp_path, damage):
    archive = packed(tmp_path, {"miniboone/data.npy": npy(rows(50, 43))})
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(ValueError, match=r"data\.tar\.gz is damaged"):
        load("MINIBOONE", archive)
    assert [path.name for path in tmp_path.iterdir()] == ["data.tar.gz"]


@pytest.mark.parametrize(("name", "member", "package"), [
    ("GAS", "gas/ethylene_CO.pickle", "pandas"), ("BSDS300", "BSDS300/BSDS300.hdf5", "h5py"),
])  # fmt: skip
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, member, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"{name} is stored in a format of {package}: pip install {package}"):
        load(name, packed(tmp_path, {member: b""}))


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
    def test_goes_on_where_it_broke_off(self, tmp_path, serve, ranges):
        server = serve(self.content, breaks_after=300_000, ranges=ranges)
        with pytest.raises(requests.RequestException):
            uci.data.download(server.url, self.checksum, tmp_path)
        (part,) = tmp_path.iterdir()
        have = part.stat().st_size
        assert part.name == "data.tar.gz.part"
        assert 200_000 < have <= 300_000
        path = uci.data.download(server.url, self.checksum, tmp_path)
        assert path.read_bytes() == self.content
        assert server.asked == ["bytes=0-", f"bytes={have}-"]
        assert list(tmp_path.iterdir()) == [path]
        assert uci.data.download(server.url, self.checksum, tmp_path) == path
        assert len(server.asked) == 2

    def test_a_wrong_checksum_leaves_nothing(self, tmp_path, serve):
        with pytest.raises(ValueError, match="does not match"):
            uci.data.download(serve(b"other").url, self.checksum, tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_part_that_is_too_long_is_deleted(self, tmp_path, serve):
        (tmp_path / "data.tar.gz.part").write_bytes(2 * self.content)
        server = serve(self.content)
        with pytest.raises(requests.RequestException, match="now deleted: run this again"):
            uci.data.download(server.url, self.checksum, tmp_path)
        assert uci.data.download(server.url, self.checksum, tmp_path).read_bytes() == self.content

    def test_an_absent_file_is_an_error(self, tmp_path, serve):
        server = serve(b"")
        with pytest.raises(requests.RequestException):
            uci.data.download(f"http://127.0.0.1:{server.server_port + 1}/", None, tmp_path)

    def test_tables_are_read_from_the_download(self, tmp_path, serve):
        content = packed(tmp_path / "there", {"miniboone/data.npy": npy(rows(50, 43))}).read_bytes()
        checksum = f"md5:{hashlib.md5(content).hexdigest()}"
        data = uci.data.load("MINIBOONE", None, serve(content).url, checksum, tmp_path / "here", "cpu")
        assert data.test.shape == (5, 43)
