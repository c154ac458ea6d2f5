"""What a run is doing: the runner keeps it in a file, and `leaklearn status` tells it in any other terminal."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from math import nan
from pathlib import Path
from threading import Lock

from leaklearn import parameters, store
from leaklearn.files import Paths, plain, remove_abandoned, write_json
from leaklearn.report import provenance, results
from leaklearn.report.results import record
from leaklearn.report.run import is_gone
from leaklearn.runner.plan import Job, plan

NAME = "run"


class Log:
    """The file `outputs/<preset>/.run.<process>.json` of a run, as long as it lasts; use it in a `with`."""

    def __init__(self, preset: str, paths: Paths, at_once: int, notebooks: Sequence[str] = ()) -> None:
        self.path = paths.outputs / preset / f".{NAME}.{os.getpid()}.json"
        self._lock, self._at_once = Lock(), at_once
        self._notebooks = list(notebooks)  # to be run, and so no other process's
        self._running: dict[str, dict[str, float]] = {}

    def __enter__(self) -> "Log":
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            remove_abandoned(folder, NAME)
            for about in _runs(folder):
                taken = sorted(set(self._notebooks) & set(about.get("notebooks", [])))
                if taken and about["process"] != os.getpid():
                    raise ValueError(
                        f"{', '.join(taken)}: process {about['process']} runs or is about to run the same under the "
                        f"preset {folder.name}; wait for it or stop it, or choose others with --only"
                    )
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
            self._notebooks = [name for name in self._notebooks if name != notebook]
            self._write()

    def _write(self) -> None:
        about = {"process": os.getpid(), "at_once": self._at_once, "notebooks": self._notebooks}
        write_json(self.path, about | {"running": self._running})


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While no other process is within the same for this folder, where the system has such locks; a kill opens it."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # Windows
        yield
        return
    try:
        with suppress(OSError):  # some network drives lock no folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _runs(folder: Path) -> list[dict]:
    """What the runs that go on now say of themselves."""
    found = []
    for file in sorted(folder.glob(f".{NAME}.*.json")):
        with suppress(ValueError):  # half a file: of a run that was killed
            about = record(file)
            if about.get("process") and not (about["process"] != os.getpid() and is_gone(about["process"], file)):
                found.append(about)
    return found


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
    if results.damage(folder):
        return False
    return all(made.get(name) == value for name, value in made_by(job, paths).items())


def recorded(notebook: str, preset: str, paths: Paths) -> dict:
    """The provenance of a notebook's results; empty where there are none, or where it is damaged."""
    try:
        return results.provenance(paths.results(preset, notebook))
    except ValueError:
        return {}


def running(preset: str, paths: Paths) -> dict[str, dict[str, float]]:
    """Notebooks of this preset that run now, in any process: the cell, when it was begun (s), and how many at once."""
    found = {}
    for about in _runs(paths.outputs / preset):
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
