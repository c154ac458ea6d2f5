"""Downloads, without a network: everything arrives or nothing is left, and an error is one line that comes soon."""

import errno
import hashlib
import http.client
import http.server
import io
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leaklearn.data import download, load, readers

from torchvision import datasets  # isort: skip  (after leaklearn, which makes it importable)


def batches(monkeypatch):
    """The files of a tiny CIFAR-10, whose checksums are made the expected ones."""
    files = {}
    for number, name in enumerate(readers.CIFAR10.md5):
        files[name] = pickle.dumps({b"data": np.full((2, 3072), number, np.uint8), b"labels": [0, number]})
        monkeypatch.setitem(readers.CIFAR10.md5, name, hashlib.md5(files[name]).hexdigest())
    return files


@pytest.fixture
def offered(monkeypatch):
    """Stands in for torchvision's class: writes the files it is given, or fails half-way with ``failure``."""

    class Offered:
        url = "https://example.invalid/cifar-10-python.tar.gz"
        files = batches(monkeypatch)
        failure = None
        limit_in_use = None

        def __init__(self, root, download):
            assert download
            Offered.limit_in_use = socket.getdefaulttimeout()
            (Path(root) / "cifar-10-python.tar.gz").write_bytes(b"the archive")
            base = Path(root) / "cifar-10-batches-py"
            base.mkdir()
            for number, (name, content) in enumerate(self.files.items()):
                if self.failure and number == 3:
                    raise self.failure
                (base / name).write_bytes(content)

    monkeypatch.setattr(datasets, "CIFAR10", Offered)
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *a, **k: io.BytesIO())  # an answer
    return Offered


def test_a_missing_data_set_is_downloaded_and_loaded(offered, tmp_path):
    data = load("cifar10", tmp_path)
    assert (len(data.train), len(data.test)) == (10, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-py"]
    assert len(list((tmp_path / "cifar-10-batches-py").iterdir())) == 6


def test_sockets_have_a_time_limit_during_the_download_only(offered, tmp_path):
    before = socket.getdefaulttimeout()
    load("cifar10", tmp_path)
    assert offered.limit_in_use == download.STALL_S
    assert socket.getdefaulttimeout() == before


def test_files_that_are_there_are_left_and_the_missing_ones_filled_in(offered, tmp_path):
    load("cifar10", tmp_path)
    base = tmp_path / "cifar-10-batches-py"
    (base / "data_batch_4").unlink()
    times = {path: path.stat().st_mtime_ns for path in base.iterdir()}
    assert len(load("cifar10", tmp_path).train) == 10
    assert times.items() <= {path: path.stat().st_mtime_ns for path in base.iterdir()}.items()


def test_nothing_is_downloaded_when_all_is_there_or_when_forbidden(offered, tmp_path):
    load("cifar10", tmp_path)
    offered.failure = AssertionError("downloaded again")
    load("cifar10", tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(FileNotFoundError, match="test_batch is missing"):
        load("cifar10", tmp_path, download=False)


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("File not found or\ncorrupted."),  # torchvision's word for a wrong checksum
        urllib.error.URLError("gone"),
        ConnectionResetError(104, "Connection reset by peer"),
        http.client.IncompleteRead(b"half"),
        TimeoutError("timed out"),
        EOFError(),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_download_that_breaks_off_leaves_nothing(offered, tmp_path, failure):
    offered.failure = failure
    with pytest.raises(FileNotFoundError, match=r"the download of cifar10 failed: .*How to get it: ") as error:
        load("cifar10", tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG], ids=os.strerror)
def test_a_full_disk_is_named_and_the_next_try_works(offered, tmp_path, number):
    offered.failure = OSError(number, os.strerror(number))
    with pytest.raises(FileNotFoundError, match=rf"{os.strerror(number)}: {tmp_path}: free some, or name") as error:
        load("cifar10", tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    offered.failure = None
    assert len(load("cifar10", tmp_path).train) == 10


def test_an_interrupted_download_leaves_nothing(offered, tmp_path):
    offered.failure = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        load("cifar10", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "tinyimagenet"])
def test_no_network_is_one_line_and_leaves_nothing(name, tmp_path, monkeypatch):
    def no_network(*a, **k):
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(download.urllib.request, "urlopen", no_network)
    with pytest.raises(FileNotFoundError, match=f"no server that offers {name} can be reached") as error:
        load(name, tmp_path)
    assert "\n" not in str(error.value)
    assert "How to get it" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_network_that_swallows_everything_is_given_up_soon(tmp_path, monkeypatch):
    end = threading.Event()

    def swallows(*a, **k):
        end.wait(20)
        raise TimeoutError

    monkeypatch.setattr(download, "REACH_S", 0.3)
    monkeypatch.setattr(download.urllib.request, "urlopen", swallows)
    begun = time.monotonic()
    with pytest.raises(FileNotFoundError, match="no server"):
        load("cifar10", tmp_path)
    assert time.monotonic() - begun < 10
    end.set()


def test_a_server_that_refuses_counts_as_reached(offered, tmp_path, monkeypatch):
    def refuses(*a, **k):
        raise urllib.error.HTTPError("url", 405, "HEAD is not allowed", {}, None)

    monkeypatch.setattr(download.urllib.request, "urlopen", refuses)
    assert len(load("cifar10", tmp_path).train) == 10


def test_a_folder_that_may_not_be_written_is_named(offered, tmp_path, monkeypatch):
    def denied(*a, **k):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(download.tempfile, "mkdtemp", denied)
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} is not writeable \(Permission denied\)"):
        load("cifar10", tmp_path)


def test_a_download_with_other_content_is_never_used(offered, tmp_path):
    offered.files = dict(offered.files, data_batch_2=b"something else")
    with pytest.raises(RuntimeError, match="data_batch_2 is damaged"):
        load("cifar10", tmp_path)


# ---- Tiny ImageNet's archive, from a server on this machine ----------------------------------------------------------

WNIDS = ("n01443537", "n01629819")


def archive():
    """A Tiny ImageNet of two classes with two images each, as published."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        for part, names in (("train", [f"{w}/images/{w}_{i}.JPEG" for w in WNIDS for i in range(2)]),
                            ("val", [f"images/val_{i}.JPEG" for i in range(4)])):  # fmt: skip
            for number, name in enumerate(names):
                image = io.BytesIO()
                Image.new("RGB", (64, 64), (60 * number, 0, 100)).save(image, "JPEG")
                packed.writestr(f"tiny-imagenet-200/{part}/{name}", image.getvalue())
        lines = [f"val_{i}.JPEG\t{WNIDS[i % 2]}\t0\t0\t9\t9\n" for i in range(4)]
        packed.writestr("tiny-imagenet-200/val/val_annotations.txt", "".join(lines))
        packed.writestr(
            "tiny-imagenet-200/words.txt", f"{WNIDS[0]}\tgoldfish, Carassius auratus\n{WNIDS[1]}\tsalamander\n"
        )
    return content.getvalue()


@pytest.fixture
def stanford(monkeypatch):
    """A server that offers the archive; `sends` is what it sends, which may be cut."""

    class Handler(http.server.BaseHTTPRequestHandler):
        whole = sends = archive()
        stalls = None  # an event, for which it waits in the middle

        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.whole)))
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            half = len(Handler.sends) // 2
            self.wfile.write(Handler.sends[:half])
            if Handler.stalls:
                Handler.stalls.wait(30)
                return
            self.wfile.write(Handler.sends[half:])

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(download.TinyImageNet, "url", f"http://127.0.0.1:{server.server_port}/tiny-imagenet-200.zip")
    monkeypatch.setattr(download.TinyImageNet, "md5", hashlib.md5(Handler.whole).hexdigest())
    yield Handler
    server.shutdown()
    server.server_close()


def test_tiny_imagenet_is_downloaded_verified_and_arranged(stanford, tmp_path):
    data = load("tinyimagenet", tmp_path)
    assert data.info.classes == ("goldfish", "salamander")
    assert (len(data.train), len(data.test)) == (4, 4)
    assert sorted(data.test.labels.tolist()) == [0, 0, 1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-imagenet-200"]
    for part in ("train", "val"):
        folder = datasets.ImageFolder(tmp_path / "tiny-imagenet-200" / part)
        assert (folder.classes, len(folder)) == (list(WNIDS), 4)


@pytest.mark.parametrize("how", ["cut", "changed"])
def test_a_cut_or_changed_archive_leaves_nothing_and_the_next_try_works(stanford, tmp_path, how):
    whole = stanford.whole
    stanford.sends = whole[: len(whole) // 2] if how == "cut" else whole[:-1] + bytes([whole[-1] ^ 1])
    with pytest.raises(FileNotFoundError, match="the download of tinyimagenet failed"):
        load("tinyimagenet", tmp_path)
    assert not list(tmp_path.iterdir())
    stanford.sends = whole
    assert len(load("tinyimagenet", tmp_path).train) == 4


KILLED = """
from leaklearn.data import download, load
download.TinyImageNet.url = {url!r}
load("tinyimagenet", {root!r})
"""


def test_after_a_kill_the_next_download_starts_anew_and_removes_what_is_left(stanford, tmp_path):
    stanford.stalls = threading.Event()
    command = KILLED.format(url=download.TinyImageNet.url, root=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", command], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.zip")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    stanford.stalls.set()
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".download.")
    stanford.stalls = None
    assert len(load("tinyimagenet", tmp_path).train) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-imagenet-200"]


def test_another_process_that_downloads_is_left_alone(stanford, tmp_path):
    (tmp_path / f".download.{os.getppid()}.abc").mkdir()
    load("tinyimagenet", tmp_path)
    assert (tmp_path / f".download.{os.getppid()}.abc").is_dir()


@pytest.mark.parametrize("there", [(), ("train",)], ids=["nothing there", "train there"])
def test_a_folder_arrives_in_one_step(stanford, tmp_path, monkeypatch, there):
    # file by file, a kill in between would leave a data set that looks complete
    target, replace, moved = tmp_path / "tiny-imagenet-200", os.replace, []
    for part in there:
        (target / part).mkdir(parents=True)
    monkeypatch.setattr(os, "replace", lambda a, b: moved.append(Path(b)) or replace(a, b))
    load("tinyimagenet", tmp_path, train_size=2, test_size=2)  # parts of it, so that nothing else is written
    arrived = [path.relative_to(target) for path in moved if path.is_relative_to(target)]
    assert Path("val") in arrived if there else arrived == [Path()]
    assert not [path for path in arrived if "val" in path.parts[:-1]]
