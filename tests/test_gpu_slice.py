"""The script for lent GPUs: data taken apart and put together again, damage and gaps told."""

import os
import shutil
import subprocess

import pytest

from leaklearn.files import REPOSITORY

SCRIPT = REPOSITORY.root / "benchmarks" / "gpu_slice.sh"
TOOLS = ("bash", "tar", "gzip", "split", "sha256sum")
pytestmark = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"takes {', '.join(TOOLS)}")


def call(*arguments, **environment):
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


@pytest.fixture
def packed(tmp_path):
    """A data set of 130 MB that does not compress, in parts."""
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number in range(2):
        (folder / f"data_batch_{number}").write_bytes(os.urandom(65_000_000))
    done = call("pack", "cifar10", tmp_path / "parts", LEAKLEARN_DATA=str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    return folder, tmp_path / "parts"


def test_data_travel_in_parts(packed, tmp_path):
    folder, parts = packed
    sizes = [part.stat().st_size for part in sorted(parts.glob("*.part-*"))]
    assert len(sizes) == 3
    assert max(sizes) <= 60_000_000

    late = parts / "cifar10.part-001"
    late.rename(tmp_path / "late")
    done = call("join", parts, tmp_path / "there")
    assert done.returncode == 0
    assert "cifar10.part-001 is still to come" in done.stdout
    assert not list((tmp_path / "there").iterdir())

    shutil.copy(tmp_path / "late", late)
    content = bytearray(late.read_bytes())
    content[7] ^= 1
    late.write_bytes(content)
    done = call("join", parts, tmp_path / "there")
    assert done.returncode == 2
    assert "damaged" in done.stderr
    assert not (tmp_path / "there" / folder.name).exists()

    (tmp_path / "late").replace(late)
    assert "cifar10: unpacked" in call("join", parts, tmp_path / "there").stdout
    there = tmp_path / "there" / folder.name
    assert {p.name: p.read_bytes() for p in there.iterdir()} == {p.name: p.read_bytes() for p in folder.iterdir()}
    assert [path.name for path in (tmp_path / "there").iterdir()] == [folder.name]
    assert "here already" in call("join", parts, tmp_path / "there").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say pack, join, run or results"),
        (["pack", "cifar11", "parts"], "there is no data set 'cifar11'"),
        (["pack", "mnist", "parts"], "there is no MNIST in LEAKLEARN_DATA"),
        (["join", "nowhere", "data"], "there are no parts in nowhere"),
        (["run"], "run takes the data's folder"),
    ],
)
def test_wrong_requests_are_told(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = call(*arguments, LEAKLEARN_DATA=str(tmp_path))
    assert done.returncode == 2
    assert message in done.stderr
