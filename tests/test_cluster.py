"""Where jobs run changes no result: in this process, on workers, on workers of which one is killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec

import pandas as pd
import psutil
import pytest
import torch
from test_reproduce import command_line, wait_for
from tiny import image_set
from tiny_inversion import FakeInversion, Settings, attacked
from tiny_project import add_notebook, make

import leaklearn as ll
from leaklearn.cli import main
from leaklearn.data.images import Dataset
from leaklearn.experiments import cluster
from leaklearn.experiments.bench import Bench
from leaklearn.experiments.cluster import ADDRESS, check_name, opened, spread
from leaklearn.experiments.harvest import InversionSettings
from leaklearn.experiments.rounds import FederationPlan
from leaklearn.experiments.shards import invert_clients
from leaklearn.experiments.training_on_leaked_data import Case, train_federations, train_on_inverted, train_on_leaks
from leaklearn.learning import Recipe
from leaklearn.store import FOLDER

dask = pytest.mark.skipif(find_spec("distributed") is None, reason="distributed is not installed: make test-cluster")
PLAN = FederationPlan(clients=4, images_per_client=8, clients_per_round=2, rounds=2, local_steps=2)
INVERSION = InversionSettings(32, 4, iterations=3)


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.delenv(ADDRESS, raising=False)
    monkeypatch.delenv(FOLDER, raising=False)


@pytest.fixture(scope="module")
def workers():
    with opened("local:2") as found:
        yield found


@pytest.fixture
def on_workers(workers, monkeypatch):
    monkeypatch.setenv(ADDRESS, workers.address)
    return workers


@pytest.fixture
def bench():
    data = Dataset(image_set(64), image_set(24, seed=1))
    return Bench(data, width=4, recipe=Recipe(steps=3, batch_size=8, pad=0), seeds=[0, 1], progress=False)


def processes():
    """Where jobs run."""
    return {pid for _, pid in spread(lambda _: os.getpid(), [(i,) for i in range(8)])}


def test_in_this_process_jobs_run_one_after_another_when_they_are_asked_for():
    begun = []
    found = spread(lambda i: begun.append(i) or i * i, [(1,), (2,), (3,)])
    assert begun == []
    assert next(found) == (0, 1)
    assert begun == [1]
    assert list(found) == [(1, 4), (2, 9)]


def test_a_table_stands_in_the_order_of_seeds_and_cases(bench):
    table, more = bench.rows_and_more("ab", lambda case, seed: ([{"case": case}], (seed, case)))
    assert table.to_dict("list") == {"dataset": ["tiny"] * 4, "seed": [0, 0, 1, 1], "case": list("abab")}
    assert more == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]


@pytest.mark.parametrize("name", ["local:0", "local", "foo", "local:-1", "tcp://host", "http://host:1", "tcp://a b:1"])
def test_a_name_that_is_no_cluster_is_refused_with_what_is(name):
    with pytest.raises(ValueError, match="local:2" if name == "local:0" else r"local:N.*tcp://HOST:PORT"):
        check_name(name)


@pytest.mark.parametrize("name", ["local:0", "foo", "tcp://127.0.0.1:1"])
def test_a_cluster_that_cannot_be_used_is_one_line_before_any_work(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(cluster, "CONNECTING", 1.0)
    if name.startswith("tcp") and find_spec("distributed") is None:
        pytest.skip("distributed is not installed: make test-cluster")
    paths = make(tmp_path)
    add_notebook(paths, "00_first")
    assert main(["reproduce", "--cluster", name], paths) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert name in err
    assert not paths.outputs.exists()


def test_without_distributed_the_error_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    paths = make(tmp_path)
    add_notebook(paths, "00_first")
    assert main(["reproduce", "--cluster", "local:2"], paths) == 2
    assert capsys.readouterr().err.endswith("pip install 'leaklearn[cluster]'\n")


@dask
def test_jobs_run_in_other_processes_with_this_ones_threads_and_give_their_results(on_workers):
    big, threads = torch.arange(500_000.0), torch.get_num_threads()
    part = big[5:9]
    found = dict(
        spread(lambda i, row: (big[i] + row.sum(), torch.get_num_threads(), part), [(i, big[i:]) for i in (3, 8)])
    )
    assert found[0][0] == 3 + big[3:].sum()
    assert found[1][0] == 8 + big[8:].sum()
    assert [each[1] for each in found.values()] == [threads] * 2
    assert torch.equal(found[0][2], part)
    assert os.getpid() not in processes()


@dask
def test_of_a_large_tensor_only_the_part_that_is_used_travels():
    whole = torch.zeros(4 * cluster.LARGE, dtype=torch.uint8)
    sent = []
    assert len(cluster._pack(whole[:100])) < 2000
    assert len(cluster._pack([whole, whole], lambda tensor: sent.append(tensor) or "key")) < 2000
    assert all(each is whole for each in sent)


@dask
def test_a_job_in_a_job_runs_where_it_is(on_workers):
    def outer(_):
        return os.getpid(), [pid for _, pid in spread(lambda _: os.getpid(), [(1,), (2,)])]

    for _, (mine, inner) in spread(outer, [(1,), (2,)]):
        assert inner == [mine, mine]


@dask
def test_what_a_job_raises_arrives_and_the_cluster_goes_on(on_workers):
    def job(i):
        if i == 3:
            raise ValueError(f"job {i} has no clients")
        return i

    with pytest.raises(ValueError, match="job 3 has no clients"):
        list(spread(job, [(i,) for i in range(6)]))
    assert dict(spread(job, [(i,) for i in range(3)])) == {0: 0, 1: 1, 2: 2}


def without_seconds(table):
    return table.drop(columns=[name for name in table if name == "seconds"])


@dask
def test_tables_are_equal_to_the_last_digit(bench, workers, monkeypatch, tmp_path):
    case = Case(bench, [PLAN, replace(PLAN, alpha=0.5)], INVERSION)
    rounds = [PLAN.attacked(4.0), PLAN.attacked(2.0)]

    def tables(cache):
        yield train_federations(case)
        yield train_on_inverted(case, cache)
        yield train_on_leaks(bench, PLAN, rounds)

    here = list(tables(tmp_path / "here"))
    monkeypatch.setenv(ADDRESS, workers.address)
    there = list(tables(tmp_path / "there"))
    for one, other in zip(here, there, strict=True):
        pd.testing.assert_frame_equal(without_seconds(one), without_seconds(other), check_exact=True)
    shards = [sorted(file.name for file in (tmp_path / name).iterdir()) for name in ("here", "there")]
    assert shards[0] == shards[1]  # written by this process, under the same names


def invert(folder, pause=0.0):
    payload, clients, protocol = attacked(24)
    attack = FakeInversion(Settings(pause=pause))
    return invert_clients(attack, payload, clients, protocol, seed=3, clients_per_shard=2, cache=folder, progress=False)


@dask
def test_a_worker_that_is_killed_costs_a_shard_and_no_digit(tmp_path, monkeypatch):
    here = invert(tmp_path / "here")
    with opened("local:2") as workers:
        monkeypatch.setenv(ADDRESS, workers.address)
        victim = next(iter(processes()))
        folder = tmp_path / "there"
        kill = (
            "import os, signal, sys, time\n"
            f"while not os.path.isdir({str(folder)!r}) or len(os.listdir({str(folder)!r})) < 2: time.sleep(0.02)\n"
            f"os.kill({victim}, signal.SIGKILL)"
        )
        killer = subprocess.Popen([sys.executable, "-c", kill])
        there = invert(folder, pause=0.1)
        killer.wait(10)
        assert not psutil.pid_exists(victim)
    drop = ["seconds"]
    assert torch.equal(here.leak.images, there.leak.images)
    pd.testing.assert_frame_equal(here.quality.drop(columns=drop), there.quality.drop(columns=drop), check_exact=True)
    assert invert(folder, pause=0.1).resumed == 12


@dask
def test_workers_that_differ_are_named_before_the_start(workers, monkeypatch):
    monkeypatch.setattr(cluster, "version", lambda package: "1.0" if package == "torch" else version(package))
    cluster._versions.cache_clear()  # of this process
    try:
        with pytest.raises(ValueError, match=f"of the cluster {workers.address} has torch .*, not 1.0; install"):
            cluster._connect(workers.address)
    finally:
        cluster._versions.cache_clear()


@dask
def test_a_scheduler_without_workers_is_named():
    import distributed

    with (
        distributed.LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None) as empty,
        pytest.raises(ValueError, match="has no workers; start some"),
        opened(empty.scheduler_address),
    ):
        pass


CELL = """
import json, os
from leaklearn.experiments.cluster import spread
pids = dict(spread(lambda i: (os.getpid(), os.environ["LEAKLEARN_STORE"]), [(i,) for i in range(4)]))
open({file!r}, "w").write(json.dumps([os.getpid(), list(pids.values())]))
"""


@dask
def test_the_command_gives_every_kernel_its_workers_and_ends_them(tmp_path, capsys):
    paths, file = make(tmp_path), tmp_path / "pids"
    add_notebook(paths, "00_first", CELL.format(file=str(file)))
    assert main(["reproduce", "--preset", "smoke", "--cluster", "local:2"], paths) == 0
    assert "2 workers at tcp://127.0.0.1:" in capsys.readouterr().out
    kernel, found = json.loads(file.read_text())
    assert kernel not in {pid for pid, _ in found}
    assert {store for _, store in found} == {str(paths.cache)}
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid, _ in found))


@dask
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_workers_too(tmp_path, number):
    paths, file = make(tmp_path), tmp_path / "pids"
    add_notebook(paths, "00_first", CELL.format(file=str(file)) + "list(spread(__import__('time').sleep, [(99,)] * 4))")
    runner = command_line(tmp_path, "--cluster", "local:2")
    wait_for(lambda: file.is_file() and file.read_text(), 180)
    time.sleep(0.5)
    family, begin = psutil.Process(runner.pid).children(recursive=True), time.monotonic()
    runner.send_signal(number)
    _, told = runner.communicate(timeout=60)
    assert time.monotonic() - begin < 2
    assert runner.returncode == 128 + number
    assert told.endswith("kept\n")
    wait_for(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in family), 1)


@dask
def test_a_bench_on_its_way_shows_no_bars(bench):
    assert cluster._load(cluster._pack(replace(bench, progress=True))).progress is False
    assert ll.load("mnist5k").name == cluster._load(cluster._pack(ll.load("mnist5k"))).name
