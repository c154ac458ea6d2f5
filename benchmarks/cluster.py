"""Jobs on a cluster: what workers gain, what a shard costs beside its work, and how much of it is the scheduler's.

    python benchmarks/cluster.py [--data mnist5k] [--images 2000] [--iterations 40] [--parts inversion simulated]

Tables in outputs/bench/cluster_<part>.csv:

inversion: gradient inversion of so many images in this process, on 1 and 2 local workers that are there already, and on
2 of which one is killed (kill -9) once a quarter of the shards is done. Whether the result is the same to the last
digit, seconds, speed-up, and the overhead of a shard: seconds on one worker less those in this process, by the shards.
simulated: 1,000 jobs that sleep for 10 ms, on 8 local workers. The scheduler's share is its process's CPU time, and the
driver's this one's, of the seconds that all took; ideal is jobs * 10 ms / workers.

Needs distributed (``pip install -e '.[cluster]'``). With other work on the cores say so beside the numbers: the load of
the last minute, divided by the cores, is in each row.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch

import leaklearn as ll
from leaklearn.experiments.cluster import ADDRESS, opened, spread
from leaklearn.experiments.harvest import InversionSettings, harvest
from leaklearn.files import REPOSITORY, write_text

SLEEPING = """
import sys
from leaklearn.experiments.cluster import opened
if __name__ == "__main__":
    with opened(sys.argv[1]) as workers:
        print(workers.address, flush=True)
        sys.stdin.read()
"""


def load() -> float:
    """Processes that wanted a core in the last minute, by cores."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def run(options, folder=None):
    """One inversion, and its seconds."""
    data = ll.load(options.data)
    clients = ll.make_clients(data.train, clients=60, seed=0)
    settings = InversionSettings(options.images, 4, iterations=options.iterations)
    begin = time.perf_counter()
    found = harvest(data, clients, settings, seed=0, cache=folder, progress=False)
    return found, time.perf_counter() - begin


def same(one, other) -> bool:
    """Whether two inversions are equal to the last digit, seconds aside."""
    tables = [each.quality.drop(columns="seconds") for each in (one, other)]
    return torch.equal(one.leak.images, other.leak.images) and tables[0].equals(tables[1])


def warm(_) -> int:
    """A job that only loads what an inversion needs."""
    time.sleep(0.5)
    return os.getpid()


def row(found, seconds, **about):
    """What all inversions tell."""
    return {**about, "images": len(found.leak), "shards": found.quality["shard"].nunique(), "seconds": seconds}


def kill_in_the_middle(victim: int, folder: str, shards: int) -> subprocess.Popen:
    """Wait in a process of its own for so many finished shards, then kill a worker."""
    program = (
        "import os, time; from pathlib import Path\n"
        f"while len(list(Path({folder!r}).glob('inversion_*'))) < {shards}: time.sleep(0.05)\n"
        f"os.kill({victim}, {signal.SIGKILL:d})"
    )
    return subprocess.Popen([sys.executable, "-c", program])


def inversion(options) -> list[dict]:
    """In this process, on one worker, on two, and on two of which one is lost."""
    here, alone = run(options)
    rows = [row(here, alone, workers=0, killed=0, same=True, load=load())]
    shards = rows[0]["shards"]
    for workers, killed in ((1, 0), (2, 0), (2, 1)):
        with opened(f"local:{workers}") as found, tempfile.TemporaryDirectory() as folder:
            os.environ[ADDRESS] = found.address
            victim = next(iter(dict(spread(warm, [(i,) for i in range(2 * workers)])).values()))
            killer = kill_in_the_middle(victim, folder, shards // 4) if killed else None
            there, seconds = run(options, folder)
            if killer and killer.wait():
                raise RuntimeError("no worker was killed: too few shards; invert more images")
            del os.environ[ADDRESS]
        about = {"workers": workers, "killed": killed, "same": same(here, there), "load": load()}
        about |= {"speed_up": alone / seconds}
        if workers == 1:
            about["overhead_ms_a_shard"] = 1000 * (seconds - alone) / shards
        rows.append(row(there, seconds, **about))
    return rows


def simulated(options) -> list[dict]:
    """Many short jobs, with the scheduler in a process of its own."""
    import psutil

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "workers.py")
        file.write_text(SLEEPING)
        host = subprocess.Popen(
            [sys.executable, file, f"local:{options.workers}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        os.environ[ADDRESS] = host.stdout.readline().strip()
        list(spread(warm, [(i,) for i in range(4 * options.workers)]))
        scheduler, driver = psutil.Process(host.pid), psutil.Process()
        for _ in range(3):
            before, begin = [sum(each.cpu_times()[:2]) for each in (scheduler, driver)], time.perf_counter()
            list(spread(time.sleep, [(0.01,)] * options.jobs))
            seconds = time.perf_counter() - begin
            spent = [sum(each.cpu_times()[:2]) - then for each, then in zip((scheduler, driver), before, strict=True)]
            ideal = 0.01 * options.jobs / options.workers
            about = {"workers": options.workers, "jobs": options.jobs, "seconds": seconds, "ideal_seconds": ideal}
            about |= {"scheduler_share": spent[0] / seconds, "scheduler_ms_a_job": 1000 * spent[0] / options.jobs}
            rows.append({**about, "driver_ms_a_job": 1000 * spent[1] / options.jobs, "load": load()})
        del os.environ[ADDRESS]
        host.communicate()
    return rows


def main() -> None:
    """Run the parts and write their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist5k")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--workers", type=int, default=8, help="of the simulated jobs")
    parser.add_argument("--jobs", type=int, default=1000, help="simulated")
    parts = {"inversion": inversion, "simulated": simulated}
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    options = parser.parse_args()
    if find_spec("distributed") is None:
        sys.exit(print("left out: distributed is not installed: pip install 'leaklearn[cluster]'"))
    torch.set_num_threads(1)
    folder = REPOSITORY.outputs / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        table = pd.DataFrame(parts[part](options))
        write_text(folder / f"cluster_{part}.csv", table.to_csv(index=False))
        print(f"{part}\n{table.round(3).to_string(index=False)}", flush=True)


if __name__ == "__main__":
    main()
