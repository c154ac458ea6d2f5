"""One execution of one notebook: where its figures, tables and metrics go, and what made them.

    run = start("02_linear_layer_leakage", globals())
    run.table(frame, "lll_leakage", by=["dataset", "attack", "fc_factor"], caption="Leak rate of each attack.")
    run.figure(fig, "leak_rate", caption="Leak rate against the FC factor.")
    run.metrics({"largest_gap": 0.013})
    run.headline("at factor 4 / 2 / 1 LOKI leaks ...")
    run.finish()

Everything is collected in a hidden folder beside `outputs/<preset>/<notebook>/` and takes that folder's place in
`finish`. So that folder always holds one complete run: one that fails or is killed leaves the results before it alone.
"""

import errno
import io
import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

import pandas as pd
import psutil
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from leaklearn import parameters, ranges
from leaklearn.files import Paths, plain, remove_abandoned, write_bytes, write_json, write_text
from leaklearn.project import PROJECT
from leaklearn.report import provenance, results
from leaklearn.report.tables import check_keys
from leaklearn.report.verdicts import count_seeds
from leaklearn.store import source_of_code


def start(
    notebook: str,
    namespace: Mapping[str, object],
    *,
    filled: Collection[str] = (),
    each: Collection[str] = (),
    paths: Paths = PROJECT,
) -> "Run":
    """Begin a run: take the parameters' values from the notebook and make an empty folder for its results.

    From here on torch computes with as many threads as the parameter `threads` says, 1 where there is none: their
    number decides how sums are rounded, so that it must follow neither from the machine nor from what else runs.

    Parameters
    ----------
    notebook : str
        Name of the notebook without `.ipynb`.
    namespace : mapping
        `globals()` of the notebook; `preset` in it (default `"smoke"`) names the folder under `outputs/`.
    filled : collection of str
        List parameters that must not be empty, beside `datasets` and `seeds`.
    each : collection of str
        List parameters that have one value for each of `datasets`, or a single one for all: see `Run.each`.
    paths : Paths
        Where notebooks and outputs are.

    Raises
    ------
    ValueError
        If there is no such notebook, a parameter has no value yet or lists one twice (which no table could tell
        apart), a list is empty that must not be, or has not as many values as there are data sets, a value is out of
        its range (`leaklearn.ranges`), or `preset` cannot be a folder's name.
    """
    file = paths.notebook(notebook)
    if not file.is_file():
        near = get_close_matches(notebook, paths.notebook_names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"notebooks are in {paths.notebooks}"
        raise ValueError(f"there is no notebook {notebook!r}: {hint}")
    names = parameters.read(file)
    missing = [name for name in names if name not in namespace]
    if missing:
        raise ValueError(f"{notebook}: no value for {', '.join(missing)}: run the parameters cell before `start`")
    values = {name: namespace[name] for name in names}
    for name, value in values.items():
        if value == [] and name in ("datasets", "seeds", *filled, *each):
            raise ValueError(f"{notebook}: {name} is empty; give at least one value")
        if name in each:
            if len(value) not in (1, len(values["datasets"])):
                many = f"{len(value)} values for {len(values['datasets'])} data sets"
                raise ValueError(f"{notebook}: {name} is {value}, {many}; give one for each, or a single one for all")
        elif isinstance(value, list) and any(value.count(one) > 1 for one in value):
            raise ValueError(f"{notebook}: {name} is {value}; give each value once")
    preset = _checked_name(str(namespace.get("preset", "smoke")), "preset")
    ranges.check(notebook, values)
    torch.set_num_threads(values.get("threads", 1))
    return Run(notebook, preset, values, paths)


class Run:
    """Collects the results of one execution; made by `start`.

    Attributes
    ----------
    folder : Path
        Where this run writes now: a hidden folder until `finish`, the notebook's own folder after it.
    parameters : dict
        Values of the notebook's parameters.
    """

    def __init__(self, notebook: str, preset: str, values: dict[str, object], paths: Paths) -> None:
        self.notebook, self.preset, self.parameters, self.paths = notebook, preset, values, paths
        self.destination = paths.results(preset, notebook)
        self.folder = self.destination.with_name(f".{notebook}.{os.getpid()}")
        self.captions: dict[str, str] = {}
        self.keys: dict[str, list[str]] = {}
        self._headline = ""
        self._metrics: dict[str, object] = {}
        self._started, self._clock = datetime.now(UTC), time.perf_counter()
        clear(self.destination)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    @property
    def seeds(self) -> str:
        """How many seeds there are, in words: `3 seeds`."""
        return count_seeds(len(self.parameters["seeds"]))

    def __repr__(self) -> str:
        return f"Run({self.notebook!r}, preset={self.preset!r}, folder={str(self.folder)!r})"

    def figure(self, fig: Figure, name: str, caption: str = "") -> Figure:
        """Save `fig_<name>.png` and `.pdf` and give the figure back; as the last line of a cell it is shown once.

        The figure is closed for pyplot, which would show it a second time.
        """
        stem = "fig_" + _checked_name(name, "figure name")
        for kind in ("png", "pdf"):
            buffer = io.BytesIO()
            fig.savefig(buffer, format=kind, metadata={"CreationDate": None} if kind == "pdf" else None)
            write_bytes(self.folder / f"{stem}.{kind}", buffer.getvalue())
        self.captions[f"{stem}.png"] = caption
        plt.close(fig)
        return fig

    def each(self, *names: str) -> list[tuple]:
        """For each data set the values of these list parameters, of which a single value is that of all data sets."""
        count = len(self.parameters["datasets"])
        columns = [self.parameters[name] for name in names]
        return list(zip(*(column * (count // len(column)) for column in columns), strict=True))

    def table(self, frame: pd.DataFrame, name: str, *, by: Sequence[str], caption: str = "") -> pd.DataFrame:
        """Save `<name>.csv`, one row a measurement, without the index, and give the frame back to be shown.

        Parameters
        ----------
        frame
            All columns but `by` and `seed` are measurements.
        name
            Of the file.
        by
            The keys: columns that tell which setting a row measured. They stand in `provenance.json`, and what a reader
            sees is folded over seeds by exactly these.
        caption
            What the table shows, with units.

        Raises
        ------
        ValueError
            If two rows have the same keys and seed (an interval would mix settings), or a key is missing.
        """
        file = f"{_checked_name(name, 'table name')}.csv"
        try:
            check_keys(frame, by)
        except ValueError as error:
            raise ValueError(f"table {name}: {error}") from None
        write_text(self.folder / file, frame.to_csv(index=False))
        self.captions[file], self.keys[file] = caption, list(by)
        return frame

    def headline(self, text: str) -> str:
        """Keep the one sentence on what this notebook found, in Markdown: README and report show it as it is."""
        self._headline = " ".join(text.split())
        return self._headline

    def metrics(self, values: Mapping[str, object]) -> dict[str, object]:
        """Add single numbers to `metrics.json`; a name given twice keeps the later value. Gives all back so far."""
        self._metrics.update(plain(values))
        write_json(self.folder / "metrics.json", self._metrics)
        return dict(self._metrics)

    def finish(self) -> pd.DataFrame:
        """Write `provenance.json`, put the results in their place, and list the files with their size in KiB.

        A second call writes the provenance again and moves nothing.
        """
        write_json(self.folder / "provenance.json", self._provenance())
        if self.folder != self.destination:
            replace_folder(self.folder, self.destination)
            self.folder = self.destination
        files = sorted(path for path in self.folder.iterdir() if path.is_file() and not path.name.startswith("."))
        sizes = [round(path.stat().st_size / 1024, 1) for path in files]
        # The folder stands above the names: pandas cuts what is longer than 50 characters.
        return pd.DataFrame({f"outputs/{self.preset}/{self.notebook}/": [path.name for path in files], "KiB": sizes})

    def _provenance(self) -> dict[str, object]:
        return {
            "notebook": self.notebook,
            "preset": self.preset,
            "parameters": self.parameters,
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self._clock, 1),
            "peak_memory_mib": provenance.peak_memory_mib(),
            "device": provenance.device(),
            "versions": provenance.versions(),
            "source": source_of_code(parameters.code(self.paths.notebook(self.notebook))),
            "git": provenance.commit(self.paths.root),
            "headline": self._headline,
            "captions": self.captions,
            "keys": self.keys,
            "files": results.digests(self.folder),
        }


def must_hold(text: str, test: Callable[[], object]) -> None:
    """Print a line of a notebook's "What must hold": `<text>: True`, or False.

    A test that looks at a setting which was not run (a missing key, an empty table, a NaN) says "not run" instead: a
    reader may change any parameter and keeps the results.
    """
    try:
        value = test()
        told = "not run" if value is None or value != value else str(bool(value))
    except (LookupError, StopIteration, ValueError, TypeError) as error:
        told = f"not run ({type(error).__name__}: {' '.join(str(error).split())[:80]})"
    print(f"{text}: {told}")  # noqa: T201


def replace_folder(new: Path, destination: Path) -> None:
    """Put `new` in the place of `destination`; what was there is set aside first and removed last.

    All of it is on the disk before the first rename: a machine that loses its power has the old or the new. A process
    that is killed between the two renames leaves both to `recover`.
    """
    for path in [*new.iterdir(), new]:
        _sync(path)
    aside = destination.with_name(f"{new.name}.old")
    while True:
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(FileNotFoundError):
            os.replace(destination, aside)
        try:
            os.replace(new, destination)
            break
        except OSError as error:  # another run has put its results there in between
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    _sync(destination.parent)
    shutil.rmtree(aside, ignore_errors=True)


def recover(destination: Path) -> None:
    """Put results in their place where a kill between the two renames of `replace_folder` has left it empty.

    They are the new ones, which were complete by then.
    """
    if destination.exists():
        return
    for aside in sorted(destination.parent.glob(f".{destination.name}.*.old")):
        new = aside.with_suffix("")
        process = new.suffix.removeprefix(".")
        if process.isdigit() and is_gone(int(process), aside):
            with suppress(OSError):  # another process recovers them too
                os.replace(new if (new / "provenance.json").is_file() else aside, destination)
                return


def clear(destination: Path) -> None:
    """Remove what a killed run has left beside the folder of its results, which it would have replaced."""
    recover(destination)
    remove_abandoned(destination.parent, destination.name)


def is_gone(process: int, path: Path) -> bool:
    """Whether the process that has made a file is no more; another that has its number now began after it."""
    try:
        return process == os.getpid() or psutil.Process(process).create_time() > path.stat().st_mtime + 1
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True


def _sync(path: Path) -> None:
    """See a file or folder on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDWR if path.is_file() and os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checked_name(name: str, what: str) -> str:
    if not ranges.NAME.fullmatch(name):
        raise ValueError(f"{what} {name!r} becomes the name of a file: use letters, digits, '_' and '-' only")
    return name
