"""What a run is doing: the runner keeps it in a file, and `leaklearn status` tells it in any other terminal."""

import os
import time
from datetime import datetime
from math import nan
from pathlib import Path
from threading import Lock

import psutil

from leaklearn import parameters, store
from leaklearn.files import Paths, plain, read_json, remove_abandoned, write_json
from leaklearn.report import provenance
from leaklearn.runner.plan import Job, plan

NAME = "run"


class Log:
    """The file `outputs/<preset>/.run.<process>.json` of a run, as long as it lasts; use it in a `with`."""

    def __init__(self, preset: str, paths: Paths, at_once: int) -> None:
        self.path = paths.outputs / preset / f".{NAME}.{os.getpid()}.json"
        self._lock, self._at_once = Lock(), at_once
        self._running: dict[str, dict[str, float]] = {}

    def __enter__(self) -> "Log":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.path.parent, NAME)
        self._write()
        return self

    def __exit__(self, *error: object) -> None:
        self.path.unlink(missing_ok=True)

    def cell(self, notebook: str, number: int) -> None:
        """A cell starts."""
        with self._lock:
            about = self._running.setdefault(notebook, {"begun": time.time()})
            about["cell"] = number
            self._write()

    def outcome(self, notebook: str) -> None:
        """A notebook has ended."""
        with self._lock:
            self._running.pop(notebook, None)
            self._write()

    def _write(self) -> None:
        write_json(self.path, {"process": os.getpid(), "at_once": self._at_once, "running": self._running})


def made_by(job: Job, paths: Paths) -> dict[str, object]:
    """What decides the results of a notebook, beside the data: parameters, sources, versions of what computes."""
    file = paths.notebook(job.notebook)
    declared = {each.name: each.default for each in parameters.read(file).values()}
    return {
        "parameters": plain(declared | job.parameters),
        "source": store.source_of_code(parameters.code(file)),
        "versions": provenance.versions(),
    }


def is_finished(job: Job, preset: str, paths: Paths) -> bool:
    """Whether the results of a notebook are there, whole, made with these parameters by these sources and versions.

    A notebook that reads others' results is never finished: they may have changed since.
    """
    made = recorded(job.notebook, preset, paths)
    if not made or job.reads_others:
        return False
    folder = paths.results(preset, job.notebook)
    if not all((folder / name).is_file() for name in [*made.get("captions", {}), "notebook.ipynb"]):
        return False
    return all(made.get(name) == value for name, value in made_by(job, paths).items())


def recorded(notebook: str, preset: str, paths: Paths) -> dict:
    """The provenance of a notebook's results; empty where there are none, or where it is damaged."""
    try:
        return read_json(paths.results(preset, notebook) / "provenance.json")
    except ValueError:
        return {}


def running(preset: str, paths: Paths) -> dict[str, dict[str, float]]:
    """Notebooks of this preset that run now, in any process: the cell, when it was begun (s), and how many at once."""
    found = {}
    for file in sorted((paths.outputs / preset).glob(f".{NAME}.*.json")):
        about = read_json(file)
        if psutil.pid_exists(about.get("process", -1)):
            found |= {name: {**mine, "at_once": about["at_once"]} for name, mine in about["running"].items()}
    return found


def status(preset: str, paths: Paths) -> tuple[list[dict[str, str]], str]:
    """A row for each notebook of a preset, and a sentence on what is left.

    Done is what the present sources have made with the preset's own parameters. The time left rests on what each
    notebook took when it last ran under this preset.
    """
    jobs, now = plan(preset, [], [], paths), running(preset, paths)
    rows, left, unknown, done = [], 0.0, 0, 0
    for job in jobs:
        made = recorded(job.notebook, preset, paths)
        took, ended = made.get("seconds") or nan, _moment(paths.results(preset, job.notebook) / "provenance.json")
        finished = is_finished(job, preset, paths)
        state = "to do"
        if job.notebook in now:
            begun = time.time() - now[job.notebook]["begun"]
            state = f"runs for {duration(begun)}, cell {now[job.notebook]['cell']:.0f}"
            left += max(0.0, took - begun) if took == took else 0.0
        elif finished:
            state, done = f"done {ended}", done + 1
        elif made:
            state = f"to do: what is there, of {ended}, was made otherwise"
        if not finished and job.notebook not in now and took == took:
            left += took
        unknown += not finished and took != took
        rows.append({"notebook": job.notebook, "state": state, "took": duration(took) if took == took else "?"})
    told = f"{done} of {len(jobs)} notebooks are done"
    if done == len(jobs):
        return rows, told
    at_once = max([about["at_once"] for about in now.values()], default=1)
    told += f"; about {duration(left / at_once)} left" if left else ""
    told += f"{' and' if left else '; left:'} {unknown} that never ran" if unknown else ""
    return rows, told if now else f"{told}; nothing runs: `leaklearn reproduce --preset {preset}` goes on from here"


def duration(seconds: float) -> str:
    """`3.4 h`, `12 min` or `40 s`."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _moment(file: Path) -> str:
    return f"{datetime.fromtimestamp(file.stat().st_mtime):%Y-%m-%d %H:%M}" if file.is_file() else ""
