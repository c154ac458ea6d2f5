"""What a run has left, read back: a damaged file is named, so that it can be made again, and never stops anything else.

A file is damaged if it cannot be read as what it should be, if a table holds a value that cannot be (an accuracy of 7),
or if it is not what the run has written, whose digests stand in `provenance.json`. A file that is not there is no
damage: of the paper preset the repository holds tables alone.
"""

import hashlib
import json
from pathlib import Path

import pandas as pd

from leaklearn.report.names import measure

KINDS = {
    "captions": dict, "keys": dict, "files": dict, "parameters": dict, "versions": dict, "device": dict,
    "headline": str, "started": str, "seconds": int | float,
}  # fmt: skip
"""What `provenance.json` holds for reports and the runner."""


def record(path: Path) -> dict:
    """The object that a JSON file holds, empty where there is no file; a ValueError names a file that is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error or 'too deep'}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(found).__name__}, not an object")
    return found


def provenance(folder: Path) -> dict:
    """What made the results in a folder, empty where none are complete; a ValueError names the file if damaged."""
    found = record(folder / "provenance.json")
    for name, kind in KINDS.items():
        if name in found and not isinstance(found[name], kind):
            raise ValueError(f"{folder / 'provenance.json'} is damaged: {name} is {found[name]!r}")
    return found


def table(path: Path) -> pd.DataFrame:
    """A result table; a ValueError names one that is cut, no table, or holds a value out of its column's range."""
    try:
        if not path.read_bytes().endswith(b"\n"):
            raise ValueError("it ends within a line")
        frame = pd.read_csv(path)
        for column in frame:
            bounds = measure(str(column)).bounds
            if bounds and not frame[column].dropna().between(*bounds).all():
                raise ValueError(f"{column} is not between {bounds[0]:g} and {bounds[1]:g}")
    except (ValueError, TypeError) as error:  # pandas' own errors are of the former kind
        raise ValueError(f"{path} is damaged: {error}") from error
    return frame


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder, by name, but for `provenance.json` and the executed notebook."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".csv", ".json", ".png", ".pdf")]
    files = [path for path in files if path.is_file() and path.name != "provenance.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def damage(folder: Path) -> dict[str, str]:
    """Why a file in a folder of results cannot be used, by its name; empty where all can, and where none are."""
    if not folder.is_dir():
        return {}
    found, written = {}, {}
    try:
        written = provenance(folder).get("files", {})
    except ValueError as error:
        found["provenance.json"] = str(error)
    for name, digest in digests(folder).items():
        try:
            if name in written and written[name] != digest:
                raise ValueError(f"{folder / name} is damaged: it is not what the run has written")
            if name.endswith(".json"):
                record(folder / name)
            elif name.endswith(".csv"):
                table(folder / name)
        except ValueError as error:
            found[name] = str(error)
    return found
