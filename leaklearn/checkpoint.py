"""The state of a long computation on disk, so that a killed one goes on where it stopped and ends with the same result.

Trainings, federations and inversions keep their state wherever `LEAKLEARN_CHECKPOINTS` names a folder, as
`leaklearn reproduce --slice` does; without it nothing is kept. A state's name is the SHA-256 of all that decides the
result (settings, tensors, this package's source, torch): other settings or another version never take it for theirs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from leaklearn.files import plain, write_bytes

log = logging.getLogger(__name__)

FOLDER = "LEAKLEARN_CHECKPOINTS"
"""The environment variable that names the folder."""

EVERY = 20.0
"""Seconds of work that a killed computation loses at most, beside one step of its own."""


class State(NamedTuple):
    """What was kept: tensors by name, and plain values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of one part, `part/tensor`, under their own names."""
        return {
            key.removeprefix(f"{name}/"): value for key, value in self.tensors.items() if key.startswith(f"{name}/")
        }


@dataclass(eq=False)
class Checkpoint:
    """Where one computation keeps its state; made by `checkpoint`.

    Attributes
    ----------
    path : Path or None
        Its file; None: nothing is kept.
    """

    path: Path | None
    _saved: float = field(default_factory=monotonic)

    def load(self) -> State | None:
        """The state that was kept last; None where there is none, or its file is damaged."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                record = json.loads(file.metadata()["record"])
            content = self.path.read_bytes()
            tensors = load_tensors(content)
            if fingerprint(sorted(tensors.items())) != record["sha256"]:
                raise ValueError("its tensors are not those that were written")
            return State(tensors, record["values"])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged (%s): its computation starts again", self.path, error)
            return None

    def due(self) -> bool:
        """Whether the last state is `EVERY` seconds old."""
        return self.path is not None and monotonic() - self._saved >= EVERY

    def save(self, values: Mapping[str, Any], **parts: Mapping[str, Tensor]) -> None:
        """Keep plain values, and tensors as `part/tensor`; the file before is replaced by the complete new one."""
        if self.path is None:
            return
        named = {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()}
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in named.items()}
        record = {"sha256": fingerprint(sorted(tensors.items())), "values": plain(values)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path, save_tensors(tensors, {"record": json.dumps(record)}))
        self._saved = monotonic()


def checkpoint(what: str, settings: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> Checkpoint:
    """The checkpoint of one computation.

    Parameters
    ----------
    what
        Its kind, the beginning of the file's name.
    settings
        All plain values that decide its result; what JSON does not know counts by its `str`.
    tensors
        All tensors that do: weights, images, labels. Looked at only where a folder is named.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        return Checkpoint(None)
    named = {
        "settings": plain(settings),
        "tensors": fingerprint(tensors),
        "source": _source(),
        "torch": torch.__version__,
    }
    key = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
    return Checkpoint(Path(folder).expanduser() / f"{what}_{key[:24]}.safetensors")


def fingerprint(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of tensors with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, value in named:
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@cache
def _source() -> str:
    """Digest of this package's source."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
