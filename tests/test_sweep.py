"""Sweeps: shard by shard on disk, killed and resumed to the very same result, damage found and redone."""

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
from tiny_inversion import FakeInversion, Settings, attacked

from leaklearn.evaluation import Truth, quality
from leaklearn.experiments.estimate import duration, estimate_seconds
from leaklearn.experiments.sweep import sweep
from leaklearn.federated import draw_batches, gather, respond

COLUMNS = ("images", "labels", "confidence", "client", "round", "bin")


@pytest.fixture(autouse=True)
def _no_runs():
    FakeInversion.runs.clear()


def run(folder, settings=None, *, clients=8, seed=3, per_shard=3, **options):
    payload, group, protocol = attacked(clients)
    attack = FakeInversion(settings or Settings())
    options = {"progress": False, **options}
    return sweep(folder, attack, payload, group, protocol, seed=seed, clients_per_shard=per_shard, **options)


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


def test_a_sweep_is_what_its_shards_and_its_clients_say(tmp_path):
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
    assert found.estimated_seconds > 0
    assert len(found.leak.meta["merged"]) == 3
    assert found.leak.meta["settings"]["attack"]["iterations"] == 5
    assert "24 images" in repr(found)


def test_a_second_call_attacks_nothing_and_reports_the_whole(tmp_path):
    first = run(tmp_path)
    FakeInversion.runs.clear()
    second = run(tmp_path)
    assert FakeInversion.runs == []
    same(first, second)
    assert (second.resumed, second.redone) == (3, [])
    assert (second.seconds, second.estimated_seconds) == (first.seconds, first.estimated_seconds)


def test_shards_depend_on_seed_and_number_only(tmp_path):
    whole, other = run(tmp_path / "a"), run(tmp_path / "b", seed=4)
    assert not torch.equal(whole.leak.images, other.leak.images)
    for part in ("json", "safetensors"):
        (tmp_path / "a" / f"shard_00001.{part}").unlink()
    FakeInversion.runs.clear()
    again = run(tmp_path / "a")
    assert whole_runs() == [(3, 4, 5)]
    same(whole, again)


@pytest.mark.parametrize("part", ["safetensors", "json"])
def test_a_flipped_byte_anywhere_is_found_redone_and_named(tmp_path, part, caplog):
    whole = run(tmp_path)
    file = tmp_path / f"shard_00001.{part}"
    good = file.read_bytes()
    if part == "json":  # in a number that no tensor's checksum covers
        places = [good.index(b'"seconds": ') + 13, good.index(b'"key"') + 12, 0]
    else:
        places = [len(good) - 5, 20]
    for place in places:
        flip(file, place)
        FakeInversion.runs.clear()
        again = run(tmp_path)
        assert len(again.redone) == 1
        assert again.redone[0].startswith("shard 1: ")
        assert "shard 1 of 3 is attacked again" in caplog.text
        assert again.resumed == 2
        assert whole_runs() == [(3, 4, 5)]
        same(whole, again)
    assert run(tmp_path).redone == []


def test_truncated_halved_and_foreign_shards_are_redone(tmp_path):
    whole = run(tmp_path / "a")
    run(tmp_path / "b", Settings(lr=0.2))
    first, second = (tmp_path / "a" / f"shard_0000{i}.safetensors" for i in (0, 1))
    first.write_bytes(first.read_bytes()[:100])
    second.unlink()
    for part in ("json", "safetensors"):
        os.replace(tmp_path / "b" / f"shard_00002.{part}", tmp_path / "a" / f"shard_00002.{part}")
    again = run(tmp_path / "a")
    assert [text[:7] for text in again.redone] == ["shard 0", "shard 1", "shard 2"]
    assert "SHA-256" in again.redone[0]
    assert "missing" in again.redone[1]
    assert "other settings" in again.redone[2]
    same(whole, again)


def test_another_shard_under_a_shards_name_is_redone(tmp_path):
    whole = run(tmp_path)
    for part in ("json", "safetensors"):
        (tmp_path / f"shard_00001.{part}").write_bytes((tmp_path / f"shard_00000.{part}").read_bytes())
    again = run(tmp_path)
    assert [text[:7] for text in again.redone] == ["shard 1"]
    same(whole, again)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"settings": Settings(lr=0.2)}, r"attack\.lr: 0\.1 there, 0\.2 here"),
        ({"seed": 5}, "seed: 3 there, 5 here"),
        ({"per_shard": 2}, "clients_per_shard: 3 there, 2 here"),
        ({"clients": 7}, "clients: 8 there, 7 here"),
    ],
)
def test_a_folder_of_other_settings_is_refused_and_says_which(tmp_path, change, told):
    run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    FakeInversion.runs.clear()
    with pytest.raises(ValueError, match=told):
        run(tmp_path, **change)
    assert FakeInversion.runs == []
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_weights_data_or_protocol_are_other_settings(tmp_path):
    run(tmp_path)
    payload, clients, protocol = attacked()
    attack, options = FakeInversion(Settings()), {"seed": 3, "clients_per_shard": 3, "progress": False}
    weights = {name: value + 1e-7 for name, value in payload.parameters.items()}
    with pytest.raises(ValueError, match=r"weights: .* there"):
        sweep(tmp_path, attack, replace(payload, parameters=weights), clients, protocol, **options)
    with pytest.raises(ValueError, match=r"data: .* there"):
        sweep(tmp_path, attack, payload, clients[::-1], protocol, **options)
    with pytest.raises(ValueError, match=r"protocol\.batch_norm: eval there, train here"):
        sweep(tmp_path, attack, payload, clients, replace(protocol, batch_norm="train"), **options)


def test_shards_of_other_source_code_are_refused(tmp_path, monkeypatch):
    for version in (1, 2):
        (tmp_path / "attack_of_a_user.py").write_text(
            f"from tiny_inversion import FakeInversion\nVERSION = {version}\nclass Mine(FakeInversion): pass\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "attack_of_a_user", raising=False)
        attack = importlib.import_module("attack_of_a_user").Mine(Settings())
        payload, clients, protocol = attacked()
        arguments = (tmp_path / "sweep", attack, payload, clients, protocol)
        if version == 1:
            sweep(*arguments, seed=3, progress=False)
            assert sweep(*arguments, seed=3, progress=False).resumed
        else:
            with pytest.raises(ValueError, match=r"code: .* there"):
                sweep(*arguments, seed=3, progress=False)


def test_a_damaged_record_of_the_folder_costs_nothing(tmp_path, caplog):
    whole = run(tmp_path)
    record = tmp_path / "sweep.json"
    for content in ("{", "[]", record.read_text().replace('"lr": 0.1', '"lr": 0.7')):
        record.write_text(content)
        again = run(tmp_path)
        assert (again.resumed, again.redone) == (3, [])
        assert "sweep.json is damaged" in caplog.text
        same(whole, again)


def test_everything_is_checked_before_any_work(tmp_path):
    payload, clients, protocol = attacked()
    attack, options = FakeInversion(Settings()), {"seed": 0, "progress": False}
    with pytest.raises(ValueError, match="occur more than once"):
        sweep(tmp_path / "x", attack, payload, [*clients, clients[0]], protocol, **options)
    with pytest.raises(ValueError, match="batch_size 7"):
        sweep(tmp_path / "x", attack, payload, clients, replace(protocol, batch_size=7), **options)
    with pytest.raises(ValueError, match="no client"):
        sweep(tmp_path / "x", attack, payload, [], protocol, **options)
    with pytest.raises(ValueError, match="no settings with iterations"):
        sweep(tmp_path / "x", object(), payload, clients, protocol, **options)
    for number in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="clients_per_shard"):
            sweep(tmp_path / "x", attack, payload, clients, protocol, clients_per_shard=number, **options)
    with pytest.raises(ValueError, match="at_once is 0"):
        sweep(tmp_path / "x", attack, payload, clients, protocol, at_once=0, **options)
    with pytest.raises(ValueError, match="unknown way to labels 'ilgr'; choose one of known, attack, "):
        sweep(tmp_path / "x", attack, payload, clients, protocol, labels="ilgr", **options)
    with pytest.raises(ValueError, match="seed is"):
        sweep(tmp_path / "x", attack, payload, clients, protocol, seed=-1, progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        sweep(tmp_path / "file", attack, payload, clients, protocol, **options)
    assert FakeInversion.runs == []
    assert not (tmp_path / "x").exists()


def test_the_estimate_comes_from_a_few_iterations_and_is_near():
    payload, clients, protocol = attacked()
    updates = respond(clients, payload, protocol)
    labels = torch.zeros(8, 3, dtype=torch.int64)
    foreseen = estimate_seconds(FakeInversion(Settings(40, pause=0.02)), payload, updates, labels)
    assert sum(count for count, _ in FakeInversion.runs) <= 6
    assert 0.5 < foreseen < 2.5  # 0.8 s on an idle machine


def test_the_bar_tells_images_psnr_and_time_left(tmp_path, capsys):
    run(tmp_path, progress=True)
    shown = capsys.readouterr().err.strip().split("\r")
    assert "0/24 images" in shown[0]
    assert any("0/24 images" in text and " left" in text for text in shown)  # the estimate, before the first shard
    assert "24/24 images" in shown[-1]
    assert " dB, 0.0 s left" in shown[-1]


def test_durations():
    told = [duration(seconds) for seconds in (0.26, 59, 60, 3600, 8000, 200000)]
    assert told == ["0.3 s", "59 s", "1 min", "1 h", "2 h 13 min", "2 d 7 h"]


@pytest.mark.parametrize("labels", ["known", "ilrg", "attack"])
def test_the_real_attack_resumes_to_the_same_images(tmp_path, labels):
    from leaklearn.attacks.inversion import GradientInversion

    payload, clients, protocol = attacked(5)
    options = {"seed": 1, "labels": labels, "clients_per_shard": 2, "at_once": 2, "progress": False}
    attack = GradientInversion("fast").replace(iterations=8)
    whole = sweep(tmp_path, attack, payload, clients, protocol, **options)
    assert whole.quality["psnr"].notna().all()
    assert whole.leak.meta["settings"]["attack"]["name"] == "fast"
    if labels == "known":
        truth = gather(clients, draw_batches(clients, protocol, 1).flat)[1]
        assert whole.leak.labels.tolist() == truth.flatten().tolist()
    flip(tmp_path / "shard_00001.safetensors", -9)
    again = sweep(tmp_path, attack, payload, clients, protocol, **options)
    assert [text[:7] for text in again.redone] == ["shard 1"]
    same(whole, again)


SCRIPT = """
import sys
from tiny_inversion import FakeInversion, Settings, attacked
from leaklearn.experiments.sweep import sweep
payload, clients, protocol = attacked(10)
attack = FakeInversion(Settings(5, pause=0.2))
sweep(sys.argv[1], attack, payload, clients, protocol, seed=3, clients_per_shard=2, progress=False)
"""


def test_kill_9_and_run_again_is_the_unbroken_run(tmp_path):
    folder = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], env=environment)
    end = time.monotonic() + 120
    while not (folder / "shard_00001.json").exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    complete = {path.stem: path.stat().st_mtime_ns for path in folder.glob("shard_*.json")}
    assert 2 <= len(complete) < 5
    (folder / ".shard_00004.safetensors.1.tmp").write_bytes(b"left by a killed process")

    settings = Settings(5, pause=0.2)
    resumed = run(folder, settings, clients=10, per_shard=2)
    ran = whole_runs()
    assert (resumed.resumed, resumed.redone) == (len(complete), [])
    assert len(ran) == 5 - len(complete)
    assert {path.stem: path.stat().st_mtime_ns for path in folder.glob("shard_*.json")}.items() >= complete.items()
    unbroken = run(tmp_path / "unbroken", settings, clients=10, per_shard=2)
    same(unbroken, resumed)
    assert resumed.leak.labels.shape == (30,)
    for number in range(5):
        name = f"shard_{number:05d}.safetensors"
        assert (folder / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()
    assert resumed.seconds >= 5 * 5 * 0.2  # the shards of the killed run count
    assert json.loads((folder / "sweep.json").read_text())["shards"] == 5
