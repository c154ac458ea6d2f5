"""Files that appear whole or not at all: written under a temporary name in the same folder, then renamed."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> Path:
    """Write `content` to `path` in one step as a reader sees it; an older file is replaced only by a complete one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
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
