"""What the runner shows: a bar over the notebooks with the current cell, a line for each outcome, and a closing table.

Where standard error is no terminal the bar is left out and long notebooks say once a minute how far they are.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from math import isnan
from types import TracebackType
from typing import TextIO

import nbformat
from tqdm import tqdm

from leaklearn import parameters
from leaklearn.files import Paths
from leaklearn.report.results import record
from leaklearn.runner.plan import Job, presets
from leaklearn.runner.reproduce import TIME_IS_UP, Outcome
from leaklearn.runner.status import duration, recorded

HEARTBEAT = 60.0  # seconds between signs of life in a log
TELLING = 0.02  # share of the work that must be done before the time left can be told


class Progress:
    """Progress over the notebooks of a run, written to `stream`, by default standard error; use it in a `with`.

    The time left is told from the `work`: each notebook's share in any unit, and its cells (`expected_work`). `took`:
    seconds of the notebooks that have run before.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        work: Mapping[str, tuple[float, int]] | None = None,
        took: Mapping[str, float] | None = None,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._work, self._took = dict(work or {}), dict(took or {})
        self._done: set[str] = set()
        self._first = time.monotonic()
        self._bar: tqdm | None = None
        self._begun: dict[str, float] = {}
        self._spoken: dict[str, float] = {}
        self._running: dict[str, int] = {}

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def start(self, jobs: list[Job]) -> None:
        """Show the empty bar."""
        self._first = time.monotonic()
        layout = "{desc} {n}/{total} |{bar:20}| {elapsed} {postfix}"
        self._bar = tqdm(
            total=len(jobs), desc="notebooks", bar_format=layout, file=self._stream, disable=None, leave=False
        )

    def cell(self, notebook: str, number: int) -> None:
        """Say that a cell starts."""
        now = time.monotonic()
        if notebook not in self._begun:
            self._begun[notebook] = self._spoken[notebook] = now
            if self._bar.disable:
                took = f", about {duration(self._took[notebook])} when it last ran" if notebook in self._took else ""
                self._write(f"{notebook} starts{took}")
        if self._bar.disable and now - self._spoken[notebook] >= HEARTBEAT:
            self._spoken[notebook] = now
            told = f"{notebook}: cell {number} starts after {now - self._begun[notebook]:.0f} s"
            self._write("; ".join(filter(None, [told, self.time_left()])))
        self._running[notebook] = number
        self._show_running()

    def outcome(self, outcome: Outcome) -> None:
        """Say how a notebook went."""
        how = f"FAILED: {outcome.error}" if outcome.error else "ok"
        if outcome.before:
            how = "done before, with the same parameters by the same sources, charts aside (--again runs it anew)"
            self._work.pop(outcome.notebook, None)
        self._write(f"{outcome.notebook}: {outcome.seconds:.1f} s, {_mib(outcome)} MiB, {how}")
        self._running.pop(outcome.notebook, None)
        self._done.add(outcome.notebook)
        self._bar.update()
        self._show_running()

    def _show_running(self) -> None:
        texts = [f"{notebook}, cell {number}" for notebook, number in list(self._running.items())]
        self._bar.set_postfix_str("; ".join(filter(None, [self.time_left(), *texts])))

    def time_left(self) -> str:
        """`about 12 min left`, as long as the work done took for what there is to do; empty while that says nothing."""
        parts = {name: work * ((self._running.get(name, 1) - 1) / cells) for name, (work, cells) in self._work.items()}
        done = sum(self._work[name][0] if name in self._done else part for name, part in parts.items())
        whole = sum(work for work, _ in self._work.values())
        if done <= TELLING * whole or done >= whole:
            return ""
        seconds = (time.monotonic() - self._first) * (whole - done) / done
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"

    def _write(self, line: str) -> None:
        tqdm.write(line, file=self._stream)
        self._stream.flush()


def _mib(outcome: Outcome) -> str:
    return f"{outcome.peak_mib:.0f}" if outcome.peak_mib == outcome.peak_mib else "?"


def expected_work(jobs: Sequence[Job], preset: str, paths: Paths) -> dict[str, tuple[float, int]]:
    """Each notebook's seconds when it last ran under this preset, and its cells.

    Where one has never run: the minutes that the README tells of the laptop preset, which have about the same
    proportions under every preset.
    """
    try:
        told = record(paths.root / "docs" / "results.json")
    except ValueError:
        told = {}
    found = {}
    for name in (job.notebook for job in jobs):
        ran = recorded(name, preset, paths).get("seconds")
        cells = len(nbformat.read(paths.notebook(name), as_version=4).cells)
        found[name] = (ran, 60 * told.get(name, {}).get("minutes", 1.0), cells)
    known = all(ran for ran, _, _ in found.values())
    return {name: (ran if known else minutes, cells) for name, (ran, minutes, cells) in found.items()}


def last_took(jobs: Sequence[Job], preset: str, paths: Paths) -> dict[str, float]:
    """Seconds of each notebook when it last ran under this preset; without those that never did."""
    found = {job.notebook: recorded(job.notebook, preset, paths).get("seconds") for job in jobs}
    return {notebook: seconds for notebook, seconds in found.items() if seconds}


def closing_table(outcomes: Sequence[Outcome]) -> str:
    """Result, seconds and peak memory of each notebook as aligned text."""
    rows = [
        {
            "notebook": outcome.notebook,
            "result": {"": "ok", TIME_IS_UP: "to go on"}.get(outcome.error, "failed"),
            "seconds": "?" if isnan(outcome.seconds) else f"{outcome.seconds:.1f}",
            "peak MiB": _mib(outcome),
        }
        for outcome in outcomes
    ]
    return "\n" + aligned(rows)


def listing(jobs: Sequence[Job], preset: str, paths: Paths) -> str:
    """The notebooks with what they took last and the parameters they would be given, and the presets, as text."""
    blocks, took = [], last_took(jobs, preset, paths)
    for job in jobs:
        declared = parameters.read(paths.notebook(job.notebook)).values()
        rows = [
            {
                "parameter": f"  {each.name}",
                "type": each.type,
                "value": repr(job.parameters.get(each.name, each.default)),
                "help": each.help,
            }
            for each in declared
        ]
        last = f", about {duration(took[job.notebook])} when it last ran" if job.notebook in took else ""
        blocks.append(f"{job.notebook}{last}\n{aligned(rows, header=False)}")
    if took:
        blocks.append(f"{len(took)} of {len(jobs)} notebooks took {duration(sum(took.values()))} in all")
    return "\n\n".join([*blocks, f"presets: {', '.join(presets(paths))}"])


def aligned(rows: Sequence[Mapping[str, object]], header: bool = True) -> str:
    """Rows with the same keys as columns of text; numbers to the right."""
    if not rows:
        return ""
    lines = [[str(value) for value in row.values()] for row in rows]
    if header:
        lines.insert(0, [str(name) for name in rows[0]])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    right = [lines[-1][i].replace(".", "", 1).isdigit() for i in range(len(widths))]
    for line in lines:
        line[:] = [text.rjust(widths[i]) if right[i] else text.ljust(widths[i]) for i, text in enumerate(line)]
    return "\n".join("  ".join(line).rstrip() for line in lines)
