"""Run the notebooks with papermill and write the report; a failure is recorded and the rest goes on.

Each notebook saves its own results by way of `leaklearn.report`, which puts them in place only when complete. The
runner adds the executed copy: `notebook.ipynb` after a success, `notebook.failed.ipynb` after a failure.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

import papermill
import psutil
from ipykernel.kernelspec import get_kernel_dict
from papermill.exceptions import PapermillExecutionError

from leaklearn.paths import REPOSITORY, Paths
from leaklearn.report import html
from leaklearn.report.run import remove_abandoned
from leaklearn.settings import Job, plan

START_TIMEOUT = 180  # seconds: a kernel on a loaded machine needs longer than papermill's 60

OnCell = Callable[[str, int], None]  # the notebook, and the number of the cell that starts, from 1


@dataclass(frozen=True)
class Outcome:
    """How one notebook went.

    Parameters
    ----------
    notebook : str
        Its name.
    error : str
        What stopped it, in one line; empty when it ran to its end.
    seconds : float
        Time from start to end, kernel included.
    peak_mib : float
        Largest resident memory of the kernel and its children, sampled, in MiB.
    """

    notebook: str
    error: str
    seconds: float
    peak_mib: float


def reproduce(
    preset: str = "laptop",
    only: Iterable[str] = (),
    assignments: Iterable[str] = (),
    *,
    paths: Paths = REPOSITORY,
    on_start: Callable[[list[Job]], None] = lambda jobs: None,
    on_cell: OnCell = lambda notebook, cell: None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> tuple[list[Outcome], Path]:
    """Run the notebooks of a preset, then write its report.

    Parameters
    ----------
    preset, only, assignments, paths
        What to run; see `leaklearn.settings.plan`.
    on_start, on_cell, on_outcome : callable
        Told the jobs before the first starts, each cell as it starts, and each notebook's outcome.

    Returns
    -------
    outcomes : list of Outcome
        One for each notebook, failed or not.
    report : Path
        The HTML page over all results of the preset.

    Raises
    ------
    ValueError
        If anything in the request is wrong; nothing has run then.
    """
    jobs = plan(preset, only, assignments, paths)
    on_start(jobs)
    outcomes = []
    with this_python_as_kernel():
        for job in jobs:
            outcomes.append(execute(job, preset, paths, on_cell))
            on_outcome(outcomes[-1])
    return outcomes, html.write(preset, paths)


def execute(job: Job, preset: str, paths: Paths, on_cell: OnCell = lambda notebook, cell: None) -> Outcome:
    """Run one notebook and file its executed copy; whatever goes wrong in it is in the outcome, not raised."""
    folder = paths.outputs / preset
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder, job.notebook)
    copy = folder / f".{job.notebook}.{os.getpid()}.ipynb"
    error, begun = "", time.perf_counter()
    with peak_memory() as peak:
        try:
            papermill.execute_notebook(
                paths.notebook(job.notebook),
                copy,
                job.parameters,
                kernel_name="python3",
                progress_bar=False,
                start_timeout=START_TIMEOUT,
                coalesce_streams=True,
                on_cell_start=lambda cell, cell_index: on_cell(job.notebook, cell_index + 1),
            )
        except PapermillExecutionError as failure:
            error = _one_line(f"{failure.ename}: {failure.evalue}")
        except Exception as failure:  # a dead kernel, a damaged file: the other notebooks are still worth running
            error = _one_line(f"{type(failure).__name__}: {failure}")
        except BaseException:  # interrupted or terminated
            copy.unlink(missing_ok=True)
            remove_abandoned(folder, job.notebook)
            raise
    remove_abandoned(folder, job.notebook)  # what the notebook had collected when it failed
    _file_copy(copy, paths.results(preset, job.notebook), failed=bool(error))
    return Outcome(job.notebook, error, time.perf_counter() - begun, peak())


def _file_copy(copy: Path, results: Path, failed: bool) -> None:
    """Put the executed copy beside the results it belongs to."""
    if not copy.exists():
        return
    results.mkdir(exist_ok=True)
    os.replace(copy, results / ("notebook.failed.ipynb" if failed else "notebook.ipynb"))
    if not failed:
        (results / "notebook.failed.ipynb").unlink(missing_ok=True)


def _one_line(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= 240 else line[:239] + "…"


@contextmanager
def this_python_as_kernel() -> Iterator[None]:
    """Make the kernel name `python3` mean the running interpreter, whatever kernels the user has installed."""
    before = os.environ.get("JUPYTER_PATH")
    with TemporaryDirectory() as folder:
        spec = Path(folder, "kernels", "python3", "kernel.json")
        spec.parent.mkdir(parents=True)
        described = get_kernel_dict()
        described["argv"][0] = sys.executable
        # A cell's error reaches the notebook; the kernel's own log would only tell of unencrypted sockets on localhost
        # and, after an interruption, of closed ones.
        described["argv"].append("--IPKernelApp.log_level=50")
        spec.write_text(json.dumps(described))
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, before]))
        try:
            yield
        finally:
            os.environ.pop("JUPYTER_PATH")
            if before is not None:
                os.environ["JUPYTER_PATH"] = before


@contextmanager
def peak_memory(every: float = 0.1) -> Iterator[Callable[[], float]]:
    """Sample the resident memory of this process's children; the yielded function gives the peak so far in MiB."""
    largest, done = [0.0], Event()

    def sample() -> None:
        me = psutil.Process()
        while not done.wait(every):
            with suppress(psutil.Error):  # a child that has just ended
                resident = sum(child.memory_info().rss for child in me.children(recursive=True))
                largest[0] = max(largest[0], resident / 2**20)

    thread = Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield lambda: largest[0]
    finally:
        done.set()
        thread.join()
