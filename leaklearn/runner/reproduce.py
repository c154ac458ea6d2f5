"""Run the notebooks with papermill, several at once, and write the report; a failure is recorded, the rest goes on.

Each notebook saves its own results by way of `leaklearn.report`, which puts them in place only when complete. The
runner adds the executed copy: `notebook.ipynb` after a success, `notebook.failed.ipynb` after a failure.

The same command goes on after a kill: it skips the notebooks that are finished, runs the others from their first cell,
and finds the long computations of each where they were left (`leaklearn.store`). A run can be cut into slices of a
fixed length, for machines that are lent for minutes; a slice ends with its kernels killed in the middle of a cell.
"""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Lock, current_thread, main_thread
from types import FrameType

import papermill
import psutil
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError

from leaklearn.experiments import cluster
from leaklearn.files import Paths, read_json, write_bytes
from leaklearn.project import PROJECT
from leaklearn.report import html
from leaklearn.report.results import damage
from leaklearn.report.run import clear
from leaklearn.runner.leftovers import tidy
from leaklearn.runner.plan import Job, plan
from leaklearn.runner.status import Log, is_finished, recorded
from leaklearn.store import FOLDER

log = logging.getLogger(__name__)

START_TIMEOUT = 180  # seconds: a kernel on a loaded machine needs longer than papermill's 60
MOST_AT_ONCE = 4
DYING = 1.0  # seconds at most that a killed kernel has until it is seen dead
LISTENING = 0.2  # seconds between two looks for a signal whose exception was lost

TIME_IS_UP = "time is up"
"""The error of a notebook that the end of a slice found unfinished."""

Handler = Callable[[int, FrameType | None], object] | int | None  # of a signal, as the module `signal` has it
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
    paths: Paths = PROJECT,
    at_once: int | None = None,
    slice_seconds: float | None = None,
    again: bool = False,
    workers: cluster.Workers | None = None,
    on_start: Callable[[list[Job]], None] = lambda jobs: None,
    on_cell: OnCell = lambda notebook, cell: None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> tuple[list[Outcome], Path]:
    """Run the notebooks of a preset that are not finished, then write its report.

    Finished is what these sources have made with these parameters (`leaklearn.runner.status.is_finished`). The long
    computations of a notebook that was killed are found where they were left. A damaged file among the results is
    named, and its notebook is run again. A notebook that another process runs under this preset is a ValueError.

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
    workers
        Of a cluster, which compute every seed, setting and shard; None: each notebook's own process does.
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
    begun = time.monotonic()
    tidy(preset, paths)
    on_start(jobs)
    outcomes: dict[str, Outcome] = {}
    for job in [] if again else jobs:
        if is_finished(job, preset, paths):
            outcomes[job.notebook] = _outcome_before(job, preset, paths)
            on_outcome(outcomes[job.notebook])
    left = [job for job in jobs if job.notebook not in outcomes]
    for job in left:
        for reason in damage(paths.results(preset, job.notebook)).values():
            log.warning("%s; %s is run again", reason, job.notebook)
    stop = Stop()
    waves = [job for job in left if not job.reads_others], [job for job in left if job.reads_others]
    # Kernels store all that takes long in the cache, or where the user says.
    storing = nullcontext() if again else _environment(FOLDER, os.environ.get(FOLDER) or str(paths.cache))
    clustered = nullcontext() if workers is None else _environment(cluster.ADDRESS, workers.address)
    doing = Log(preset, paths, at_once, [job.notebook for job in left])

    def tell_cell(notebook: str, cell: int) -> None:
        doing.cell(notebook, cell)
        on_cell(notebook, cell)

    pool = ThreadPoolExecutor(at_once)
    # Once this folder is gone, a kernel's client that outlives the run by a second can leave no copy anywhere.
    executed = TemporaryDirectory(prefix="leaklearn-", ignore_cleanup_errors=True)
    with storing, clustered, doing, this_python_as_kernel(), executed as copies, _never_lost() as raise_lost_signal:
        try:
            for wave in waves:
                running = {pool.submit(execute, job, preset, paths, Path(copies), tell_cell, stop) for job in wave}
                while running:
                    done, running = wait(running, LISTENING, FIRST_COMPLETED)
                    raise_lost_signal()
                    for outcome in (each.result() for each in done):
                        outcomes[outcome.notebook] = outcome
                        doing.outcome(outcome.notebook)
                        on_outcome(outcome)
                    if running and slice_seconds is not None and time.monotonic() - begun >= slice_seconds:
                        raise TimeoutError(TIME_IS_UP)
        except BaseException as error:  # interrupted, terminated, or the slice is over
            with _deaf():
                if workers is not None:
                    workers.abandon()
                stop.kernels()
                pool.shutdown(wait=False, cancel_futures=True)
                for job in left:
                    clear(paths.results(preset, job.notebook))
            if not isinstance(error, TimeoutError):
                raise
    pool.shutdown(wait=False)
    for job in left:
        outcomes.setdefault(job.notebook, Outcome(job.notebook, TIME_IS_UP, nan, nan))
    return [outcomes[job.notebook] for job in jobs], html.write(preset, paths)


class Stop:
    """The end of a run before its time: its kernels are killed, and none is started any more."""

    def __init__(self) -> None:
        self._event, self._starting = Event(), Lock()
        event, starting = self._event, self._starting

        class Kernels(AsyncKernelManager):
            """Kernels that the run can stop. One that is just being made is no child yet, and would be overlooked."""

            async def _async_launch_kernel(self, kernel_cmd: list[str], **options: object) -> None:
                with starting:
                    if event.is_set():
                        raise InterruptedError("the run is being stopped")
                    await super()._async_launch_kernel(kernel_cmd, **options)

        self.manager = Kernels

    def is_set(self) -> bool:
        """Whether the run has been stopped."""
        return self._event.is_set()

    def kernels(self) -> None:
        """Kill this process's children, a cluster's workers too, and see them dead: papermill would notice late."""
        with self._starting:
            self._event.set()
        children = []
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "resource_tracker" not in " ".join(child.cmdline()):  # Python's own, which tidies up after workers
                    child.kill()
                    children.append(child)
        psutil.wait_procs(children, DYING)


@contextmanager
def _hearing(change: Callable[[Handler], Handler]) -> Iterator[None]:
    """With other handlers of Ctrl-C and SIGTERM, made of those before; only the main thread is told of signals."""
    ours = (signal.SIGINT, signal.SIGTERM) if current_thread() is main_thread() else ()
    before = {number: signal.signal(number, change(signal.getsignal(number))) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _deaf() -> AbstractContextManager[None]:
    """Without an ear for signals: a second one must not cut short what the first has begun."""
    return _hearing(lambda before: signal.SIG_IGN)


@contextmanager
def _never_lost() -> Iterator[Callable[[], None]]:
    """Gives what raises the exception of a signal that has come, again.

    An exception is raised wherever the main thread is just then, and lost where that is an object's finaliser or the
    callback of a weak reference, which Python lets nothing out of.
    """
    lost: list[Callable[[], object]] = []

    def remembering(before: Handler) -> Handler:
        def handler(number: int, frame: FrameType | None) -> None:
            lost.append(lambda: before(number, frame))
            before(number, frame)

        return handler if callable(before) else before

    def raise_lost_signal() -> None:
        for again in lost:
            again()

    with _hearing(remembering):
        yield raise_lost_signal


def notebooks_at_once(jobs: Sequence[Job]) -> int:
    """As many as have cores for all their threads, four at most, and one alone where a GPU computes."""
    if any(job.parameters.get("device", "cpu") != "cpu" for job in jobs):
        return 1
    threads = max((job.parameters.get("threads", 1) for job in jobs), default=1)
    return max(1, min(cores() // threads, len(jobs), MOST_AT_ONCE))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def execute(job: Job, preset: str, paths: Paths, copies: Path, on_cell: OnCell, stop: Stop) -> Outcome:
    """Run one notebook and file its executed copy; whatever goes wrong in it is in the outcome, not raised.

    The copy is written in `copies`. Once the run is stopped, what the notebook's kernel leaves is removed.
    """
    results = paths.results(preset, job.notebook)
    results.parent.mkdir(parents=True, exist_ok=True)
    clear(results)
    copy = copies / f"{job.notebook}.ipynb"
    error, begun = "", time.perf_counter()

    def on_start(cell: object, cell_index: int) -> None:
        if stop.is_set():
            raise InterruptedError(job.notebook)
        on_cell(job.notebook, cell_index + 1)

    try:
        papermill.execute_notebook(
            paths.notebook(job.notebook),
            copy,
            job.parameters,
            kernel_name="python3",
            kernel_manager_class=stop.manager,
            progress_bar=False,
            start_timeout=START_TIMEOUT,
            coalesce_streams=True,
            on_cell_start=on_start,
        )
    except PapermillExecutionError as failure:
        error = _one_line(f"{failure.ename}: {failure.evalue}")
    except OSError as failure:  # the copy cannot be written, as on a full disk
        error = _one_line(f"{failure.strerror or failure}: {failure.filename or copy}")
    except Exception as failure:  # a dead kernel, a damaged file: the other notebooks are still worth running
        error = _one_line(f"{type(failure).__name__}: {failure}")
    clear(results)  # what the notebook had collected when it failed
    if stop.is_set():
        return Outcome(job.notebook, "interrupted", time.perf_counter() - begun, nan)
    error = _file_copy(copy, results, error)
    peak = nan if error else recorded(job.notebook, preset, paths).get("peak_memory_mib") or nan
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


def _file_copy(copy: Path, results: Path, error: str) -> str:
    """Put the executed copy beside the results it belongs to, and tell how the notebook, or else this, went wrong.

    A copy that a full disk has cut is left out.
    """
    try:
        read_json(copy)
        executed = copy.read_bytes()
    except (ValueError, FileNotFoundError):
        return error
    try:
        results.mkdir(exist_ok=True)
        write_bytes(results / ("notebook.failed.ipynb" if error else "notebook.ipynb"), executed)
    except OSError as failure:
        return error or _one_line(f"{failure.strerror or failure}: {failure.filename or results}")
    if not error:
        (results / "notebook.failed.ipynb").unlink(missing_ok=True)
    return error


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
