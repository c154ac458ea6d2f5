"""Run the notebooks with papermill, several at once, and write the report; a failure is recorded, the rest goes on.

Each notebook saves its own results by way of `leaklearn.report`, which puts them in place only when complete. The
runner adds the executed copy: `notebook.ipynb` after a success, `notebook.failed.ipynb` after a failure.

The same command goes on after a kill: it skips the notebooks that are finished, runs the others from their first cell,
and finds the long computations of each where they were left (`leaklearn.store`). A run can be cut into slices of a
fixed length, for machines that are lent for minutes; a slice ends with its kernels killed in the middle of a cell.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread, current_thread, main_thread

import papermill
import psutil
from ipykernel.kernelspec import get_kernel_dict
from papermill.exceptions import PapermillExecutionError

from leaklearn.files import REPOSITORY, Paths, read_json, remove_abandoned
from leaklearn.report import html
from leaklearn.runner.plan import Job, plan
from leaklearn.runner.status import Log, is_finished, recorded
from leaklearn.store import FOLDER

START_TIMEOUT = 180  # seconds: a kernel on a loaded machine needs longer than papermill's 60
MOST_AT_ONCE = 4
REAPING = 0.5  # seconds that an interrupted run waits for its kernels' end, which it has brought about

TIME_IS_UP = "time is up"
"""The error of a notebook that the end of a slice found unfinished."""

OnCell = Callable[[str, int], None]  # the notebook, and the number of the cell that starts, from 1


@dataclass(frozen=True)
class Outcome:
    """How one notebook went."""

    notebook: str
    error: str  # what stopped it, in one line; empty when it ran to its end
    seconds: float  # from start to end, kernel included
    peak_mib: float  # largest resident memory of the kernel, as its provenance says; NaN where it wrote none
    before: bool = False  # it was finished before this run


def reproduce(
    preset: str = "laptop",
    only: Iterable[str] = (),
    assignments: Iterable[str] = (),
    *,
    paths: Paths = REPOSITORY,
    at_once: int | None = None,
    slice_seconds: float | None = None,
    again: bool = False,
    on_start: Callable[[list[Job]], None] = lambda jobs: None,
    on_cell: OnCell = lambda notebook, cell: None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> tuple[list[Outcome], Path]:
    """Run the notebooks of a preset that are not finished, then write its report.

    Finished is what these sources have made with these parameters (`leaklearn.runner.status.is_finished`). The long
    computations of a notebook that was killed are found where they were left.

    Parameters
    ----------
    preset, only, assignments, paths
        What to run; see `leaklearn.runner.plan.plan`.
    at_once
        Notebooks that run at a time, which share the cores; by default as `notebooks_at_once` says.
    slice_seconds
        Stop after so many seconds; the same call then goes on.
    again
        Run what is finished too, and train everything anew.
    on_start, on_cell, on_outcome
        Told the jobs before the first starts, each cell as it starts, and each notebook's outcome.

    Returns
    -------
    outcomes : list of Outcome
        One for each notebook, failed or not, in their order; the error is `TIME_IS_UP` where the slice ended first.
    report : Path
        The HTML page over all results of the preset.
    """
    jobs = plan(preset, only, assignments, paths)
    at_once = notebooks_at_once(jobs) if at_once is None else at_once
    if at_once < 1:
        raise ValueError(f"{at_once} notebooks cannot run at once; it is 1 or more")
    if slice_seconds is not None and not slice_seconds > 0:
        raise ValueError(f"a slice of {slice_seconds} seconds is none; it is above 0")
    sliced, begun = slice_seconds is not None, time.monotonic()
    on_start(jobs)
    outcomes: dict[str, Outcome] = {}
    for job in [] if again else jobs:
        if is_finished(job, preset, paths):
            outcomes[job.notebook] = _outcome_before(job, preset, paths)
            on_outcome(outcomes[job.notebook])
    left = [job for job in jobs if job.notebook not in outcomes]
    stopping, running = Event(), []
    waves = [job for job in left if not job.reads_others], [job for job in left if job.reads_others]
    # Kernels store all that takes long in the cache, or where the user says.
    storing = nullcontext() if again else _environment(FOLDER, os.environ.get(FOLDER) or str(paths.cache))
    log = Log(preset, paths, at_once)

    def tell_cell(notebook: str, cell: int) -> None:
        log.cell(notebook, cell)
        on_cell(notebook, cell)

    pool = ThreadPoolExecutor(at_once)
    with storing, log, this_python_as_kernel():
        try:
            for wave in waves:
                running = [pool.submit(execute, job, preset, paths, tell_cell, stopping) for job in wave]
                until = begun + slice_seconds - time.monotonic() if sliced else None
                for done in as_completed(running, until):
                    outcomes[done.result().notebook] = done.result()
                    log.outcome(done.result().notebook)
                    on_outcome(done.result())
        except BaseException as error:  # interrupted, terminated, or the slice is over
            with _deaf():
                stopping.set()
                pool.shutdown(wait=False, cancel_futures=True)
                reaper = Thread(target=_kill_kernels, args=[running], daemon=True)
                reaper.start()
                # Who goes on, after a slice, may start kernels of other notebooks: these must not be killed.
                reaper.join(None if isinstance(error, TimeoutError) else REAPING)
                for job in left:
                    _clear(paths.outputs / preset, job)
            if not isinstance(error, TimeoutError):
                raise
    pool.shutdown(wait=False)
    for job in left:
        outcomes.setdefault(job.notebook, Outcome(job.notebook, TIME_IS_UP, nan, nan))
    return [outcomes[job.notebook] for job in jobs], html.write(preset, paths)


def _kill_kernels(running: Sequence[Future]) -> None:
    """Kill this process's children until no notebook runs any more: a kernel may just be starting.

    papermill needs a second or two to see that a kernel is dead; nobody has to wait for it.
    """
    while not all(each.done() for each in running):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        time.sleep(0.02)


@contextmanager
def _deaf() -> Iterator[None]:
    """Without an ear for Ctrl-C and SIGTERM: a second one must not cut short what the first has begun."""
    if current_thread() is not main_thread():  # only the main thread is told of signals
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def notebooks_at_once(jobs: Sequence[Job]) -> int:
    """As many as have cores for all their threads, four at most, and one alone where a GPU computes."""
    if any(job.parameters.get("device", "cpu") != "cpu" for job in jobs):
        return 1
    threads = max((job.parameters.get("threads", 1) for job in jobs), default=1)
    return max(1, min(cores() // threads, len(jobs), MOST_AT_ONCE))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _clear(folder: Path, job: Job) -> None:
    """Remove what an interrupted notebook leaves, whose kernel is dead."""
    remove_abandoned(folder, job.notebook)
    _copy(folder, job).unlink(missing_ok=True)


def _copy(folder: Path, job: Job) -> Path:
    """The executed copy, while it is written."""
    return folder / f".{job.notebook}.{os.getpid()}.ipynb"


def execute(job: Job, preset: str, paths: Paths, on_cell: OnCell, stopping: Event) -> Outcome:
    """Run one notebook and file its executed copy; whatever goes wrong in it is in the outcome, not raised.

    Once `stopping` is set, kernels are killed, and what they leave is removed.
    """
    folder = paths.outputs / preset
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder, job.notebook)
    copy = _copy(folder, job)
    error, begun = "", time.perf_counter()

    def on_start(cell: object, cell_index: int) -> None:
        if stopping.is_set():
            raise InterruptedError(job.notebook)
        on_cell(job.notebook, cell_index + 1)

    try:
        papermill.execute_notebook(
            paths.notebook(job.notebook),
            copy,
            job.parameters,
            kernel_name="python3",
            progress_bar=False,
            start_timeout=START_TIMEOUT,
            coalesce_streams=True,
            on_cell_start=on_start,
        )
    except PapermillExecutionError as failure:
        error = _one_line(f"{failure.ename}: {failure.evalue}")
    except OSError as failure:  # the copy cannot be written, as on a full disk
        error = _one_line(f"{failure.strerror or failure}: {failure.filename or folder}")
    except Exception as failure:  # a dead kernel, a damaged file: the other notebooks are still worth running
        error = _one_line(f"{type(failure).__name__}: {failure}")
    remove_abandoned(folder, job.notebook)  # what the notebook had collected when it failed
    if stopping.is_set():
        _clear(folder, job)
        return Outcome(job.notebook, "interrupted", time.perf_counter() - begun, nan)
    results = paths.results(preset, job.notebook)
    _file_copy(copy, results, failed=bool(error))
    peak = nan if error else read_json(results / "provenance.json").get("peak_memory_mib") or nan
    return Outcome(job.notebook, error, time.perf_counter() - begun, peak)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """An environment variable with this value; afterwards it is as it was."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _outcome_before(job: Job, preset: str, paths: Paths) -> Outcome:
    made = recorded(job.notebook, preset, paths)
    return Outcome(job.notebook, "", made.get("seconds") or nan, made.get("peak_memory_mib") or nan, before=True)


def _file_copy(copy: Path, results: Path, failed: bool) -> None:
    """Put the executed copy beside the results it belongs to; one that a full disk has cut is removed."""
    try:
        read_json(copy)
    except ValueError:
        copy.unlink()
    if not copy.exists():
        return
    results.mkdir(exist_ok=True)
    os.replace(copy, results / ("notebook.failed.ipynb" if failed else "notebook.ipynb"))
    if not failed:
        (results / "notebook.failed.ipynb").unlink(missing_ok=True)


def _one_line(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= 400 else line[:399] + "…"


@contextmanager
def this_python_as_kernel() -> Iterator[None]:
    """Make the kernel name `python3` mean the running interpreter, whatever kernels the user has installed."""
    with TemporaryDirectory() as folder:
        spec = Path(folder, "kernels", "python3", "kernel.json")
        spec.parent.mkdir(parents=True)
        described = get_kernel_dict()
        described["argv"][0] = sys.executable
        # A cell's error reaches the notebook; the kernel's own log would only tell of unencrypted sockets on localhost
        # and, after an interruption, of closed ones.
        described["argv"].append("--IPKernelApp.log_level=50")
        spec.write_text(json.dumps(described))
        with _environment("JUPYTER_PATH", os.pathsep.join(filter(None, [folder, os.environ.get("JUPYTER_PATH")]))):
            yield
