"""The shards of a long attack on disk: which are there, which are damaged, and whether the folder is another sweep's.

A folder holds `sweep.json`, the settings in readable form, and for each finished shard the two files of `Leak.save`.
Every shard carries the SHA-256 of the settings that made it, so that it is known for what it is even alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from leaklearn.files import plain, write_json
from leaklearn.leaks import Leak

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shards:
    """The shards of one sweep.

    Attributes
    ----------
    folder : Path
        Where they are.
    settings : dict
        Everything that decides the result, as plain JSON values.
    count : int
        How many shards make the whole.
    """

    folder: Path
    settings: Mapping[str, Any]
    count: int

    @cached_property
    def key(self) -> str:
        """SHA-256 of the settings."""
        return _digest(self.settings)

    def open(self) -> None:
        """Make the folder, or take up the one that is there.

        Raises
        ------
        ValueError
            If the folder holds a sweep with other settings, naming what differs, or is a file.
        """
        record = self.folder / "sweep.json"
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; a sweep needs a folder of its own")
        if record.is_file():
            try:
                stored = json.loads(record.read_text(encoding="utf-8"))
                if _digest(stored["settings"]) != stored["key"]:
                    raise ValueError("its settings are not those of its key")
                found = differences(stored["settings"], self.settings)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                log.warning("%s is damaged (%s) and is written again; each shard is checked by itself", record, error)
                found = []
            if found:
                raise ValueError(
                    f"{self.folder} holds a sweep with other settings ({'; '.join(found)}): use another folder, or "
                    "delete this one"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(record, {"shards": self.count, "key": self.key, "settings": self.settings})

    def path(self, number: int) -> Path:
        """Where a shard is, without the endings of its two files."""
        return self.folder / f"shard_{number:05d}"

    def save(self, number: int, leak: Leak, **record: float) -> Leak:
        """Write a finished shard with what is recorded of it, and give it back as it is on disk."""
        meta = as_settings({**leak.meta, "sweep": {"key": self.key, "shard": number, **record}})
        replace(leak, meta={**meta, "meta_sha256": _digest(meta)}).save(self.path(number))
        return Leak.load(self.path(number))

    def load(self, number: int, clients: Tensor) -> Leak | None:
        """A finished shard, None where there is none.

        Raises
        ------
        ValueError
            If it is damaged, half of it is missing, or it was made with other settings or of other clients.
        """
        path = self.path(number)
        if not path.with_name(path.name + ".json").exists():
            return None  # the JSON is written last: whatever else is there, this shard never was finished
        try:
            leak = Leak.load(path)
        except FileNotFoundError as error:
            raise ValueError(str(error)) from None
        meta = {name: value for name, value in leak.meta.items() if name != "meta_sha256"}
        if leak.meta.get("meta_sha256") != _digest(meta):
            raise ValueError(f"{path}.json is damaged: its record is not the one that was written")
        about = meta.get("sweep", {})
        if about.get("key") != self.key or about.get("shard") != number:
            raise ValueError(f"{path} was made with other settings, or is another shard")
        if set(leak.client.tolist()) != set(clients.tolist()):
            raise ValueError(f"{path} does not hold the clients of shard {number}")
        return leak


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Which settings differ, as texts `attack.iterations: 400 there, 800 here`."""
    there, here = dict(_flat(stored)), dict(_flat(wanted))
    names = [*here, *(name for name in there if name not in here)]
    return [
        f"{name}: {_short(there, name)} there, {_short(here, name)} here"
        for name in names
        if (name in there, there.get(name)) != (name in here, here.get(name))
    ]


def as_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from JSON, so that they can be compared with stored ones."""
    return json.loads(json.dumps(plain(values)))


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _short(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "not set"
    text = str(values[name])
    return text if len(text) <= 40 else f"{text[:12]}…"
