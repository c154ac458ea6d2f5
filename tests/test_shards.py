"""Many clients inverted shard by shard: killed and resumed to the very same result, damage found and redone."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_inversion import FakeInversion, Settings, attacked

from leaklearn.evaluation import Truth, quality
from leaklearn.experiments.shards import invert_clients
from leaklearn.federated import draw_batches, gather
from leaklearn.store import FOLDER

COLUMNS = ("images", "labels", "confidence", "client", "round", "bin")


@pytest.fixture(autouse=True)
def _no_runs(monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    FakeInversion.runs.clear()


def run(folder, settings=None, *, clients=8, seed=3, per_shard=3, **options):
    payload, group, protocol = attacked(clients)
    attack = FakeInversion(settings or Settings())
    options = {"progress": False, **options}
    options |= {"seed": seed, "clients_per_shard": per_shard, "cache": folder}
    return invert_clients(attack, payload, group, protocol, **options)


def shard_files(folder):
    """The files of the shards, in the order of their numbers."""
    return sorted(folder.glob("inversion_*"), key=lambda file: described(file)["settings"]["shard"])


def described(file):
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["record"])["about"]


def same(a, b):
    assert all(torch.equal(getattr(a.leak, name), getattr(b.leak, name)) for name in COLUMNS)
    drop = ["seconds"]
    assert a.quality.drop(columns=drop).equals(b.quality.drop(columns=drop))


def whole_runs(iterations=5):
    return [clients for count, clients in FakeInversion.runs if count == iterations]


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_the_whole_is_what_its_shards_and_its_clients_say(tmp_path):
    found = run(tmp_path)
    _, clients, protocol = attacked()
    images, labels = gather(clients, draw_batches(clients, protocol, 3).flat)
    truth = Truth(images, labels, torch.arange(8))
    assert found.leak.client.tolist() == [i for i in range(8) for _ in range(3)]
    assert found.leak.labels.tolist() == labels.flatten().tolist()
    whole = quality(found.leak, truth)
    assert found.quality[list(whole)].equals(whole)
    assert found.quality["shard"].tolist() == [0] * 9 + [1] * 9 + [2] * 6
    assert found.quality["seconds"].sum() == pytest.approx(found.seconds)
    assert (found.resumed, found.redone) == (0, [])
    assert torch.equal(found.true.images, images.flatten(0, 1))
    assert len(found.leak.meta["merged"]) == 3
    assert described(shard_files(tmp_path)[1])["settings"]["attack"]["iterations"] == 5


def test_a_second_call_attacks_nothing_and_reports_the_whole(tmp_path):
    first = run(tmp_path)
    FakeInversion.runs.clear()
    second = run(tmp_path)
    assert FakeInversion.runs == []
    same(first, second)
    assert (second.resumed, second.redone) == (3, [])
    assert second.seconds == first.seconds


def test_shards_depend_on_seed_and_number_only(tmp_path):
    whole, other = run(tmp_path / "a"), run(tmp_path / "b", seed=4)
    assert not torch.equal(whole.leak.images, other.leak.images)
    shard_files(tmp_path / "a")[1].unlink()
    FakeInversion.runs.clear()
    again = run(tmp_path / "a")
    assert whole_runs() == [(3, 4, 5)]
    same(whole, again)


@pytest.mark.parametrize("place", ["seconds", "settings", "images", "head"])
def test_a_flipped_byte_anywhere_is_found_redone_and_named(tmp_path, place, caplog):
    whole = run(tmp_path)
    file = shard_files(tmp_path)[1]
    good = file.read_bytes()
    seconds = good.index(b"seconds") + 13  # in a number that no tensor's checksum covers
    flip(file, {"seconds": seconds, "settings": good.index(b"iterations") + 3, "images": -5, "head": 20}[place])
    FakeInversion.runs.clear()
    again = run(tmp_path)
    assert len(again.redone) == 1
    assert again.redone[0].startswith("shard 1: ")
    assert f"{file} is damaged" in caplog.text
    assert again.resumed == 2
    assert whole_runs() == [(3, 4, 5)]
    same(whole, again)
    assert run(tmp_path).redone == []


def test_truncated_missing_and_foreign_shards_are_redone(tmp_path):
    whole = run(tmp_path / "a")
    run(tmp_path / "b", Settings(lr=0.2))
    first, second, third = shard_files(tmp_path / "a")
    first.write_bytes(first.read_bytes()[:100])
    second.unlink()
    os.replace(shard_files(tmp_path / "b")[2], third)
    again = run(tmp_path / "a")
    assert [text[:7] for text in again.redone] == ["shard 0", "shard 2"]
    assert again.resumed == 0
    assert "other settings" in again.redone[1]
    same(whole, again)


def test_another_shard_under_a_shards_name_is_redone(tmp_path):
    whole = run(tmp_path)
    first, second, _ = shard_files(tmp_path)
    second.write_bytes(first.read_bytes())
    again = run(tmp_path)
    assert [text[:7] for text in again.redone] == ["shard 1"]
    same(whole, again)


@pytest.mark.parametrize("change", [{"settings": Settings(lr=0.2)}, {"seed": 5}, {"per_shard": 2}])
def test_other_settings_have_other_entries_and_leave_these_alone(tmp_path, change):
    whole = run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = run(tmp_path, **change)
    assert (other.resumed, other.redone) == (0, [])
    assert {path: path.read_bytes() for path in before} == before
    FakeInversion.runs.clear()
    same(whole, run(tmp_path))
    assert FakeInversion.runs == []


def test_other_weights_data_protocol_or_labels_are_other_entries(tmp_path):
    run(tmp_path)
    payload, clients, protocol = attacked()
    attack = FakeInversion(Settings())
    options = {"seed": 3, "clients_per_shard": 3, "cache": tmp_path, "progress": False}
    weights = {name: value + 1e-7 for name, value in payload.parameters.items()}
    others = [
        (replace(payload, parameters=weights), clients, protocol, {}),
        (payload, clients[::-1], protocol, {}),
        (payload, clients, replace(protocol, batch_norm="train"), {}),
        (payload, clients, protocol, {"labels": "ilrg"}),
    ]
    for *arguments, more in others:
        assert invert_clients(attack, *arguments, **options, **more).resumed == 0


def test_shards_of_other_source_code_are_not_taken(tmp_path, monkeypatch):
    for version in (1, 2):
        (tmp_path / f"attack_of_a_user_{version}.py").write_text(
            f"from tiny_inversion import FakeInversion\nVERSION = {version}\nclass Mine(FakeInversion): pass\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        attack = importlib.import_module(f"attack_of_a_user_{version}").Mine(Settings())
        options = {"seed": 3, "cache": tmp_path / "store", "progress": False}
        assert invert_clients(attack, *attacked(), **options).resumed == 0
        assert invert_clients(attack, *attacked(), **options).resumed == 1


def test_everything_is_checked_before_any_work(tmp_path):
    payload, clients, protocol = attacked()
    attack, options = FakeInversion(Settings()), {"seed": 0, "cache": tmp_path, "progress": False}
    with pytest.raises(ValueError, match="occur more than once"):
        invert_clients(attack, payload, [*clients, clients[0]], protocol, **options)
    with pytest.raises(ValueError, match="batch_size 7"):
        invert_clients(attack, payload, clients, replace(protocol, batch_size=7), **options)
    with pytest.raises(ValueError, match="no client"):
        invert_clients(attack, payload, [], protocol, **options)
    for number in (0, -1):
        with pytest.raises(ValueError, match="clients_per_shard"):
            invert_clients(attack, payload, clients, protocol, clients_per_shard=number, **options)
    with pytest.raises(ValueError, match="unknown way to labels 'ilgr'; choose one of known, "):
        invert_clients(attack, payload, clients, protocol, labels="ilgr", **options)
    assert FakeInversion.runs == []
    assert not list(tmp_path.iterdir())


def test_the_estimate_comes_from_a_few_iterations_and_is_near(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("leaklearn.experiments.shards._show", lambda bar, tables, left: told.append(left))
    run(tmp_path, Settings(40, pause=0.02), per_shard=8)
    assert sum(count for count, _ in FakeInversion.runs) <= 6 + 40
    assert 0.5 < told[0] < 2.5  # 0.8 s on an idle machine
    assert told[-1] == 0


def test_the_bar_tells_images_psnr_and_time_left(tmp_path, capsys):
    run(tmp_path, progress=True)
    shown = capsys.readouterr().err.strip().split("\r")
    assert "0/24 images" in shown[0]
    assert any("0/24 images" in text and " left" in text for text in shown)  # the estimate, before the first shard
    assert "24/24 images" in shown[-1]
    assert " dB, 00:00 left" in shown[-1]


@pytest.mark.parametrize("labels", ["known", "ilrg"])
def test_the_real_attack_resumes_to_the_same_images(tmp_path, labels):
    from leaklearn.attacks.inversion import GradientInversion

    payload, clients, protocol = attacked(5)
    options = {"seed": 1, "labels": labels, "clients_per_shard": 2, "cache": tmp_path, "progress": False}
    attack = GradientInversion("fast").replace(iterations=8)
    whole = invert_clients(attack, payload, clients, protocol, **options)
    assert whole.quality["psnr"].notna().all()
    file = shard_files(tmp_path)[1]
    assert described(file)["settings"]["attack"]["name"] == "fast"
    if labels == "known":
        truth = gather(clients, draw_batches(clients, protocol, 1).flat)[1]
        assert whole.leak.labels.tolist() == truth.flatten().tolist()
    flip(file, -9)
    again = invert_clients(attack, payload, clients, protocol, **options)
    assert [text[:7] for text in again.redone] == ["shard 1"]
    same(whole, again)


SCRIPT = """
import sys
from tiny_inversion import FakeInversion, Settings, attacked
from leaklearn.experiments.shards import invert_clients
attack = FakeInversion(Settings(5, pause=0.2))
invert_clients(attack, *attacked(10), seed=3, clients_per_shard=2, cache=sys.argv[1], progress=False)
"""


def test_kill_9_and_run_again_is_the_unbroken_run(tmp_path):
    folder = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], env=environment)
    end = time.monotonic() + 120
    while len(list(folder.glob("inversion_*"))) < 2 and time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    complete = {path: path.stat().st_mtime_ns for path in folder.glob("inversion_*")}
    assert 2 <= len(complete) < 5

    settings = Settings(5, pause=0.2)
    resumed = run(folder, settings, clients=10, per_shard=2)
    ran = whole_runs()
    assert (resumed.resumed, resumed.redone) == (len(complete), [])
    assert len(ran) == 5 - len(complete)
    assert {path: path.stat().st_mtime_ns for path in complete} == complete
    unbroken = run(tmp_path / "unbroken", settings, clients=10, per_shard=2)
    same(unbroken, resumed)
    assert resumed.leak.labels.shape == (30,)
    assert resumed.seconds >= 5 * 5 * 0.2  # the shards of the killed run count
