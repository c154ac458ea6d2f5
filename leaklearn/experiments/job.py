"""What one shard of a sweep is made from: its clients' updates, their labels, the attack, and the truth to score it."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from leaklearn.attacks import inversion
from leaklearn.attacks.labels import METHODS, restore_labels
from leaklearn.checkpoint import fingerprint
from leaklearn.evaluation import Truth, quality
from leaklearn.experiments.estimate import Attack, estimate_seconds, now
from leaklearn.experiments.shards import as_settings
from leaklearn.federated import Client, Draw, Payload, Updates, draw_batches, gather, respond
from leaklearn.federated.protocols import Protocol
from leaklearn.leaks import Leak

# Clients of a shard where nothing else is said, and how many bytes their updates may take.
CLIENTS_PER_SHARD = {"cpu": 32, "cuda": 256}
UPDATE_BYTES = {"cpu": 2**30, "cuda": 2**34}

# Ways to labels that are no method of `restore_labels`.
KNOWN, OWN = "known", "attack"


@dataclass(frozen=True, eq=False)
class Job:
    """A sweep cut into shards that depend on nothing but their number.

    Attributes
    ----------
    attack, payload, clients, protocol, seed, labels, at_once
        As in `leaklearn.experiments.sweep.sweep`.
    per_shard : int
        Clients in a shard; the last one may have fewer.

    Raises
    ------
    ValueError
        If the attack has no settings with iterations, the way to labels is unknown, there are no clients or some share
        an id, or a number is out of range.
    """

    attack: Attack
    payload: Payload
    clients: Sequence[Client]
    protocol: Protocol
    seed: int
    labels: str
    per_shard: int
    at_once: int | None = None

    def __post_init__(self) -> None:
        settings = getattr(self.attack, "settings", None)
        if not dataclasses.is_dataclass(settings) or not hasattr(settings, "iterations"):
            raise ValueError(f"{self.attack!r} is no optimisation attack: it has no settings with iterations")
        if self.labels not in (KNOWN, OWN, *METHODS):
            known = ", ".join((KNOWN, OWN, *METHODS))
            raise ValueError(f"unknown way to labels {self.labels!r}; choose one of {known}")
        numbers = [("seed", self.seed, 0), ("clients_per_shard", self.per_shard, 1)]
        for name, value, least in numbers + [("at_once", self.at_once, 1)] * (self.at_once is not None):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; it is a whole number of at least {least}")
        if not self.clients:
            raise ValueError("no client given; a sweep attacks at least one")
        twice = [name for name, count in Counter(client.id for client in self.clients).items() if count > 1]
        if twice:
            raise ValueError(f"clients {twice[:5]} occur more than once; each client of a sweep has an id of its own")

    @property
    def options(self) -> dict[str, int]:
        """What is said to the attack beside its settings."""
        return {} if self.at_once is None else {"at_once": self.at_once}

    @cached_property
    def positions(self) -> Tensor:
        """(K, T, b) mini-batches of all clients, whatever the shards; raises a ValueError where they are too large."""
        return draw_batches(self.clients, self.protocol, self.seed).positions

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-len(self.clients) // self.per_shard)

    def group(self, number: int) -> slice:
        """The clients of a shard."""
        return slice(number * self.per_shard, min((number + 1) * self.per_shard, len(self.clients)))

    def ids(self, number: int) -> Tensor:
        """(k,) ids of a shard's clients."""
        return torch.tensor([client.id for client in self.clients[self.group(number)]])

    def truth(self, number: int) -> Truth:
        """What the clients of a shard use; for scoring only, and for labels that the attacker is granted."""
        group = self.group(number)
        return Truth(*gather(self.clients[group], self.positions[group].flatten(1)), self.ids(number))

    def updates(self, number: int) -> Updates:
        """The answers of a shard's clients."""
        group = self.group(number)
        return respond(self.clients[group], self.payload, self.protocol, batches=Draw(self.positions[group]))

    def shard_seed(self, number: int) -> int:
        """The attack's seed for a shard."""
        digest = hashlib.blake2b(f"{self.seed} {number}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 33  # 31 bits, for an attack that multiplies it before it seeds

    def labels_for(self, number: int, updates: Updates) -> Tensor | None:
        """(k, N) labels as the attacker has them, None where finding them is left to the attack."""
        if self.labels == OWN:
            return None
        if self.labels == KNOWN:
            return self.truth(number).labels.to(self.payload.device)
        return restore_labels(self.payload, updates, self.labels).labels()

    def estimate(self, number: int) -> float:
        """Seconds that one client will take, from a few iterations on a shard."""
        updates = self.updates(number)
        labels = self.labels_for(number, updates)
        seed = self.shard_seed(number)
        seconds = estimate_seconds(self.attack, self.payload, updates, labels, seed=seed, **self.options)
        return seconds / len(updates)

    def run(self, number: int) -> tuple[Leak, float]:
        """Attack a shard; the leak, and the attacker's seconds for labels and images."""
        updates = self.updates(number)
        begin = now(self.payload)
        labels = self.labels_for(number, updates)
        leak = self.attack.reconstruct(self.payload, updates, labels, seed=self.shard_seed(number), **self.options)
        return leak, now(self.payload) - begin

    def score(self, number: int, leak: Leak) -> pd.DataFrame:
        """`quality` of a shard, its positions counted over all clients, with the columns shard and seconds."""
        table = quality(leak, self.truth(number))
        table["position"] += self.group(number).start * self.protocol.images_per_client
        return table.assign(shard=number, seconds=leak.meta["sweep"]["seconds"] / len(table))

    def settings(self) -> dict[str, Any]:
        """Everything that decides the result; values too large to be read are there by their SHA-256."""
        described = {
            "code": _code(self.attack),
            "attack": {"class": type(self.attack).__name__, **dataclasses.asdict(self.attack.settings)},
            "protocol": {"class": type(self.protocol).__name__, **dataclasses.asdict(self.protocol)},
            "seed": self.seed,
            "labels": self.labels,
            "clients": len(self.clients),
            "clients_per_shard": self.per_shard,
            "at_once": self.at_once,
            "device": self.payload.device.type,
            "model": str(self.payload.model),
            "weights": fingerprint({**self.payload.parameters, **self.payload.buffers}.items()),
            "data": fingerprint(self._data()),
        }
        return as_settings(described)

    def _data(self) -> Iterator[tuple[str, Tensor]]:
        for number in range(self.count):
            truth = self.truth(number)
            yield from (("ids", truth.clients), ("images", truth.images), ("labels", truth.labels))


def _code(attack: Attack) -> str:
    """Digest of the source that the attack runs: shards of two versions are not to be mixed, nor taken for one another.

    Of ours, all attacks and label rules; of another's, the file of its class.
    """
    attacks, own = Path(inversion.__file__).parents[1], Path(inspect.getfile(type(attack)))
    files = sorted(attacks.rglob("*.py")) if own.is_relative_to(attacks) else [own]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def default_clients_per_shard(payload: Payload) -> int:
    """Clients of a shard by device, fewer where a model is so large that their updates would fill the memory."""
    kind = payload.device.type if payload.device.type in UPDATE_BYTES else "cpu"
    size = sum(value.numel() * value.element_size() for value in payload.parameters.values())
    return max(1, min(CLIENTS_PER_SHARD[kind], UPDATE_BYTES[kind] // size))
