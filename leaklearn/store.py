"""Work that is kept on disk: a killed computation goes on where it stopped, a finished one is not done again.

All entries lie in one folder. `LEAKLEARN_STORE` names it, for everything that is computed (`leaklearn reproduce
--slice` sets it); without the variable, only those computations are kept whose caller names a folder, as notebooks do
for the inversions of whole federations; otherwise nothing is.

An entry is one safetensors file, never a pickle, written whole or not at all. Its name is the SHA-256 of all that
decides the result: the settings, the tensors, torch's version and threads, and the source of what computes it. That
source is the files that define the attack, the trainer or the federation, and every module of this package that these
import, directly or through others (`source_of`). Imports flow one way, so no experiment, chart or report is among them:
editing those loses nothing, and other settings or another version of an attack never take the entry for theirs.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from leaklearn.files import plain, remove_abandoned, write_bytes

log = logging.getLogger(__name__)

FOLDER = "LEAKLEARN_STORE"
"""The environment variable that names the folder."""

EVERY = 20.0
"""Seconds of work that a killed computation loses at most, beside one step of its own."""
WORTH = 3.0
"""Seconds that a finished computation has taken at least for its result to be kept."""


class State(NamedTuple):
    """What an entry holds: tensors by name, and plain values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of one part, `part/tensor`, under their own names."""
        return {
            key.removeprefix(f"{name}/"): value for key, value in self.tensors.items() if key.startswith(f"{name}/")
        }


@dataclass(eq=False)
class Entry:
    """Where one computation keeps its state or its result; made by `entry`."""

    path: Path | None  # its file, whether it exists or not; None: nothing is kept
    about: dict[str, Any] = field(default_factory=dict)  # what tells it from others; the file repeats it
    damage: str = ""  # why `load` could not use the file that it found; empty where it could, or there was none
    _saved: float = field(default_factory=monotonic)

    def load(self) -> State | None:
        """What was saved last; None where there is nothing, or the file is damaged, which is logged with the reason."""
        self.damage = ""
        if self.path is None:
            return None
        remove_abandoned(self.path.parent, self.path.name)
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                record = json.loads(file.metadata()["record"])
            tensors = load_tensors(self.path.read_bytes())
            if record["about"] != self.about:
                raise ValueError("it was made with other settings, or is another entry")
            if record["sha256"] != _digest(tensors, record["values"]):
                raise ValueError("its SHA-256 is not that of what was written")
            return State(tensors, record["values"])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            self.damage = str(error)
            log.warning("%s is damaged (%s) and not used", self.path, error)
            return None

    def due(self, finished: bool = False) -> bool:
        """Whether the last state is `EVERY` seconds old; of a result, once it is finished, `WORTH` seconds."""
        return self.path is not None and monotonic() - self._saved >= (WORTH if finished else EVERY)

    def save(self, values: Mapping[str, Any], **parts: Mapping[str, Tensor]) -> None:
        """Keep plain values, and tensors as `part/tensor`; the file before is replaced by the complete new one."""
        if self.path is None:
            return
        named = {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()}
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in named.items()}
        values = json.loads(json.dumps(plain(values)))  # as it comes back
        record = {"about": self.about, "sha256": _digest(tensors, values), "values": values}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path, save_tensors(tensors, {"record": json.dumps(record)}))
        self._saved = monotonic()


def entry(
    what: str,
    settings: Mapping[str, Any],
    tensors: Iterable[tuple[str, Tensor]],
    made_by: Iterable[object],
    folder: str | Path | None = None,
) -> Entry:
    """The entry of one computation.

    Parameters
    ----------
    what
        Its kind, the beginning of the file's name.
    settings
        All plain values that decide its result; what JSON does not know counts by its `str`.
    tensors
        All tensors that do: weights, images, labels. Looked at only where something is kept.
    made_by
        Functions and classes that compute it: see `source_of`.
    folder
        Where it is kept if `LEAKLEARN_STORE` names no folder; None: nowhere.
    """
    folder = os.environ.get(FOLDER) or folder
    if not folder:
        return Entry(None)
    described = {
        "settings": plain(settings),
        "tensors": fingerprint(tensors),
        "source": source_of(*made_by),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    about = json.loads(json.dumps(described))
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return Entry(Path(folder).expanduser() / f"{what}_{key[:24]}.safetensors", about)


def kept_values(
    what: str,
    settings: Mapping[str, Any],
    tensors: Iterable[tuple[str, Tensor]],
    made_by: Iterable[object],
    compute: Callable[[], Mapping[str, Any]],
) -> dict[str, Any]:
    """The plain values that `compute` gives, or gave before, as JSON keeps them; the other arguments are `entry`'s.

    Such an entry takes a kilobyte, where what `compute` keeps on its own way (weights, momentum) takes many MB: those
    few kilobytes are what to take along when a run is to go on elsewhere.
    """
    stored = entry(what, settings, tensors, made_by)
    if (state := stored.load()) is not None:
        return state.values
    values = json.loads(json.dumps(plain(compute())))
    if stored.due(finished=True):
        stored.save(values)
    return values


def fingerprint(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of tensors with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, value in named:
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        whole = value.detach().cpu().contiguous()
        flat = whole.as_strided((whole.numel(),), (1,))  # a single value may have any stride, and `view` keeps it
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tensors_of(record: object) -> dict[str, Tensor]:
    """The fields of a dataclass that are tensors, by name."""
    found = {each.name: getattr(record, each.name) for each in fields(record)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def source_of(*makers: object) -> str:
    """SHA-256 of the source that functions or classes run.

    It covers the file that defines each and all modules of this package that the file imports, directly or through
    others. What has no file, as a function that was typed into a notebook, has another digest every time: nobody can
    tell whether it is still the same.
    """
    files: set[Path] = set()
    for maker in makers:
        while isinstance(maker, functools.partial):
            maker = maker.func
        try:
            files |= _with_imports([Path(inspect.getfile(maker)).resolve()])
        except (TypeError, OSError):
            return uuid4().hex
    return hashlib.sha256("".join(sorted(_file_digest(file) for file in files)).encode()).hexdigest()


def source_of_code(code: str) -> str:
    """SHA-256 of code, as of a notebook's cells, and of all that it computes with.

    That is every module of this package that the code imports, directly, through others or as `ll.<name>`, but for what
    only shows results: reports and widgets.
    """
    lines = [line for line in code.splitlines() if not line.lstrip().startswith(("%", "!"))]  # IPython's own commands
    code = "\n".join(lines)
    shown = [Path(__file__).resolve().parent / part for part in ("report", "widgets")]
    files = _with_imports(_imports_of(code), without=shown)
    return hashlib.sha256("".join([code, *sorted(map(_file_digest, files))]).encode()).hexdigest()


def _digest(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> str:
    """SHA-256 of an entry's content."""
    content = fingerprint(sorted(tensors.items())) + json.dumps(values, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


@functools.cache
def _file_digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _with_imports(files: Iterable[Path], without: Iterable[Path] = ()) -> set[Path]:
    """Files, and the modules of this package that they import, directly or through others; none in these folders."""
    found: set[Path] = set()
    waiting, without = list(files), list(without)
    while waiting:
        file = waiting.pop()
        if file not in found and not any(file.is_relative_to(folder) for folder in without):
            found.add(file)
            waiting += _imported(file)
    return found


@functools.cache
def _imported(file: Path) -> list[Path]:
    """The modules of this package that a file imports."""
    return _imports_of(file.read_text(encoding="utf-8"))


def _imports_of(code: str) -> list[Path]:
    """The modules of this package that code imports, whole or in part."""
    names = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ll":
            names.append(f"{__package__}.{import_module(__package__)._ORIGIN.get(node.attr, node.attr)}")
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:  # a module of that name, else something that the module itself defines
                whole = f"{node.module}.{alias.name}"
                names.append(whole if _module_file(whole) else node.module)
    return [path for name in names if (path := _module_file(name))]


def _module_file(name: str) -> Path | None:
    """The file of one of this package's modules by its dotted name; None for any other name."""
    package, *parts = name.split(".")
    root = Path(__file__).resolve().parent
    if package != root.name:
        return None
    path = root.joinpath(*parts)
    candidates = (path.with_suffix(".py"), path / "__init__.py") if parts else (path / "__init__.py",)
    return next((candidate for candidate in candidates if candidate.is_file()), None)
