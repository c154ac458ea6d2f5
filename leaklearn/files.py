"""Where the project keeps its files, and how they are written: whole or not at all.

Every folder comes from `Paths`, absolute: nothing depends on the working directory. The runner and the reports take a
`Paths`; only their default, `REPOSITORY`, knows the checkout that this package was imported from. A file is written
under a temporary name in its folder, then renamed.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Paths:
    """The folders under one root, the absolute path of the repository or of a folder laid out like it."""

    root: Path

    @property
    def notebooks(self) -> Path:
        """Folder of `NN_section.ipynb`."""
        return self.root / "notebooks"

    @property
    def params(self) -> Path:
        """Folder of `<preset>/NN_section.yaml`."""
        return self.root / "params"

    @property
    def outputs(self) -> Path:
        """Folder of `<preset>/<notebook>/` and `<preset>/report.html`."""
        return self.root / "outputs"

    @property
    def cache(self) -> Path:
        """Folder of what can be made again (leaks, trained models), shared by notebooks and presets."""
        return self.outputs / ".cache"

    def notebook(self, name: str) -> Path:
        """Path of the notebook called `name`, whether or not it exists."""
        return self.notebooks / f"{name}.ipynb"

    def results(self, preset: str, notebook: str) -> Path:
        """Folder of the results of `notebook` under `preset`, whether or not it exists."""
        return self.outputs / preset / notebook

    def notebook_names(self) -> list[str]:
        """Names of the notebooks in the order they run, which is that of their numbers."""
        return sorted(path.stem for path in self.notebooks.glob("[0-9][0-9]_*.ipynb"))


REPOSITORY = Paths(Path(__file__).resolve().parents[1])


def write_bytes(path: Path, content: bytes) -> Path:
    """Write `content` to `path` in one step as a reader sees it; an older file is replaced only by a complete one.

    An OSError names the file even where the system's own, as for a full disk, does not.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path, content: str) -> Path:
    """`write_bytes` for UTF-8 text."""
    return write_bytes(path, content.encode())


def write_json(path: Path, content: Mapping) -> Path:
    """Write strict, indented JSON; NumPy and torch values become plain numbers and lists, NaN and infinity null."""
    return write_text(path, json.dumps(plain(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict:
    """What a JSON file holds; nothing where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def remove_abandoned(folder: Path, name: str) -> None:
    """Remove the hidden files and folders `.<name>.<process>*` in `folder` whose process is no more: it was killed."""
    for path in folder.iterdir() if folder.is_dir() else ():
        process = path.name.removeprefix(f".{name}.").split(".")[0]
        if path.name.startswith(f".{name}.") and process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def plain(value: object) -> object:
    """`value` with nothing in it but what JSON knows; what it does not know becomes its `str`."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # NumPy scalars and arrays, tensors, pandas Series
        value = value.tolist()
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
