"""A full disk: an error that names the file, nothing half-written, what was there before stays, the next try works."""

import errno
import io
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from leaklearn import cli
from leaklearn.data import download, load, tinyimagenet
from leaklearn.files import Paths, remove_abandoned, write_bytes, write_json, write_text
from leaklearn.leaks import Leak

MUCH = 2**21  # bytes, twice what the small disk holds
NOBODY = 99_999_999  # no system has a process of this number


def leak(count):
    origin = torch.zeros(count, dtype=torch.int64)
    return Leak(torch.rand(count, 3, 32, 32), torch.rand(count), origin, origin, origin)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def full(monkeypatch):
    """Every file is cut half-way, as on a disk that has just become full; `full.undo()` makes room."""
    whole = Path.write_bytes

    def half(path, content):
        whole(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # of a write, so without a file's name

    monkeypatch.setattr(Path, "write_bytes", half)
    return monkeypatch


@pytest.fixture
def small(tmp_path):
    """A disk of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command for a small disk")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a small disk is refused: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_the_error_names_the_file_and_nothing_is_left(tmp_path, full):
    with pytest.raises(OSError, match=r"No space left on device: '.*/new\.json'"):
        write_json(tmp_path / "new.json", {"a": 1})
    assert names(tmp_path) == []
    full.undo()
    write_json(tmp_path / "new.json", {"a": 1})
    assert names(tmp_path) == ["new.json"]


def test_an_older_file_and_an_older_leak_stay(tmp_path, request):
    write_text(tmp_path / "old.txt", "whole")
    before = leak(4)
    before.save(tmp_path / "leak")
    request.getfixturevalue("full")
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "old.txt", "another")
    with pytest.raises(OSError, match=r"No space left on device: '.*/leak\.safetensors'"):
        leak(5).save(tmp_path / "leak")
    assert (tmp_path / "old.txt").read_text() == "whole"
    assert torch.equal(Leak.load(tmp_path / "leak").images, before.images)
    assert names(tmp_path) == ["leak.safetensors", "old.txt"]


def test_the_command_says_it_in_one_line_with_exit_code_1(tmp_path, full, capsys):
    report = tmp_path / "report.html"
    full.setattr(cli, "build_parser", lambda: parser_that(lambda options, paths: write_text(report, "a page")))
    assert cli.main([], Paths(tmp_path)) == 1
    assert capsys.readouterr().err == f"leaklearn: No space left on device: {report}\n"
    assert names(tmp_path) == []


def parser_that(runs):
    parser = cli.Parser()
    parser.set_defaults(run=runs)
    return parser


def test_a_real_full_disk(small):
    for write in (lambda: write_bytes(small / "a.bin", bytes(MUCH)), lambda: leak(200).save(small / "leak")):
        with pytest.raises(OSError, match=rf"No space left on device: '{small}/(a.bin|leak.safetensors)'"):
            write()
        assert names(small) == []
    assert tinyimagenet.keep(np.zeros((200, 3, 64, 64), np.uint8), small / "decoded", "source") is False
    assert names(small) == []
    leak(20).save(small / "leak")
    assert len(Leak.load(small / "leak")) == 20


def test_a_download_to_a_real_full_disk(small, monkeypatch):
    class Offered:
        url = "https://example.invalid/archive"

        def __init__(self, root, download):
            (root / "archive").write_bytes(bytes(MUCH))

    monkeypatch.setitem(download.DOWNLOADABLE, "cifar10", Offered)
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *a, **k: io.BytesIO())  # an answer
    with pytest.raises(FileNotFoundError, match=rf"No space left on device: {small}: free some, or name") as error:
        load("cifar10", small)
    assert "\n" not in str(error.value)
    assert names(small) == []


def test_only_what_a_dead_process_left_is_removed(tmp_path):
    kept = {f".work.{os.getpid()}", ".work.notes", f".other.{NOBODY}", "work"}
    for name in (*kept, f".work.{NOBODY}", f".work.{NOBODY}.old"):
        (tmp_path / name).mkdir()
    (tmp_path / f".work.{NOBODY}.tmp").write_text("half")
    remove_abandoned(tmp_path, "work")
    assert set(names(tmp_path)) == kept
    remove_abandoned(tmp_path / "not there", "work")
