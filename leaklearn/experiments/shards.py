"""Gradient inversion of many clients, hours or days of it: shard by shard.

A shard is some clients that are attacked together: one entry of `leaklearn.store`, written before the next shard
starts, or as it ends where workers of a cluster attack several (`leaklearn.experiments.cluster`). It depends on nothing
but its own clients, its number and the seed, so that a killed and resumed run gives the very result of an unbroken one
on the same machine; a damaged shard is found by its SHA-256 and attacked again.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from leaklearn import store
from leaklearn.attacks.labels import METHODS, restore_labels
from leaklearn.data.images import ImageSet
from leaklearn.evaluation import Truth, quality
from leaklearn.evaluation.leakage import READABLE_DB
from leaklearn.experiments.cluster import at_once, spread
from leaklearn.federated import Client, Draw, Payload, Updates, draw_batches, gather, respond
from leaklearn.federated.protocols import Protocol
from leaklearn.files import plain
from leaklearn.leaks import Leak, merge

log = logging.getLogger(__name__)

# Clients of a shard, fewer where their updates would take more bytes than this.
CLIENTS_PER_SHARD = {"cpu": 32, "cuda": 256}
UPDATE_BYTES = {"cpu": 2**30, "cuda": 2**34}

KNOWN = "known"
"""The attacker is given the labels."""


@dataclass(frozen=True, eq=False)
class Harvest:
    """What the server took.

    Attributes
    ----------
    leak : Leak
        The reconstructions, shard after shard, with the labels that the attacker has.
    true : ImageSet
        The attacked images themselves, in the order of `quality`'s positions.
    quality : DataFrame
        `leaklearn.evaluation.quality`, a row an attacked image, then ``shard`` and ``seconds``, an image's share of its
        shard's attack time.
    seconds : float
        The attacker's time, labels and images, whether it was spent now or by an earlier run.
    resumed : int
        Finished shards that were found on disk.
    redone : list of str
        Shards that were found damaged and attacked again, each with the reason.
    """

    leak: Leak
    true: ImageSet
    quality: pd.DataFrame
    seconds: float
    resumed: int
    redone: list[str]

    @property
    def leak_rate(self) -> float:
        """Share of the attacked images that reach 20 dB."""
        return float((self.quality["psnr"] >= READABLE_DB).mean())


def invert_clients(
    attack: Any,
    payload: Payload,
    clients: Sequence[Client],
    protocol: Protocol,
    *,
    seed: int,
    labels: str = KNOWN,
    clients_per_shard: int | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Harvest:
    """Attack the updates of many clients, shard by shard.

    Parameters
    ----------
    attack
        `GradientInversion`, or another attack that is made from its `settings`, of which one is `iterations`.
    payload, clients, protocol
        What is sent, to whom, and what they do; only the updates of one shard are ever in memory.
    seed
        Decides the mini-batches (`draw_batches(clients, protocol, seed)`, whatever the shards) and, together with a
        shard's number, the attack's own randomness.
    labels
        ``"known"``, or the method of `restore_labels` that the attacker restores them with.
    clients_per_shard
        None: by device and size of the model.
    cache, progress
        See `leaklearn.experiments.harvest.harvest`.

    Raises
    ------
    ValueError
        If there are no clients, some share an id or have too few images for a batch; before anything is computed.
    """
    twice = [name for name, count in Counter(client.id for client in clients).items() if count > 1]
    if twice or not clients:
        raise ValueError(f"clients {twice[:5]} occur more than once" if twice else "no client is given to attack")
    if labels not in (KNOWN, *METHODS):
        raise ValueError(f"unknown way to labels {labels!r}; choose one of {', '.join((KNOWN, *METHODS))}")
    size = _default_clients_per_shard(payload) if clients_per_shard is None else clients_per_shard
    if size < 1:
        raise ValueError(f"clients_per_shard is {size}; it is at least 1")
    drawn = draw_batches(clients, protocol, seed).positions
    cuts = [slice(begin, begin + size) for begin in range(0, len(clients), size)]
    about = (attack, payload, protocol, labels, seed, cache)
    shards = [
        _Shard(number, drawn[: cut.start].numel(), clients[cut], Draw(drawn[cut]), *about)
        for number, cut in enumerate(cuts)
    ]
    found, redone = {}, []
    for shard in shards:
        if (state := shard.entry.load()) is not None:
            found[shard.number] = Leak(**state.part("leak"), meta=state.values["meta"]), state.values["seconds"]
        elif shard.entry.damage:
            redone.append(f"shard {shard.number}: {shard.entry.damage}")
    tables = {number: shards[number].score(*result) for number, result in found.items()}
    resumed, todo = len(found), [shard for shard in shards if shard.number not in found]
    log.info("%d of %d shards are there, %d of the others are damaged", resumed, len(shards), len(redone))

    left = sum(shard.images for shard in todo)
    layout, done = "{desc}: {n}/{total} images |{bar}| {elapsed}{postfix}", drawn.numel() - left
    bar = tqdm(total=drawn.numel(), initial=done, bar_format=layout, desc="inversion", disable=not progress)
    with bar:
        workers = at_once()
        for _, each in spread(_Shard.estimate, [(shard,) for shard in todo[:1]]):
            _show(bar, tables, each * left / workers)
        for number, result in spread(_Shard.run, [(shard,) for shard in todo]):
            shard = todo[number]
            shard.keep(*result)
            found[shard.number], tables[shard.number] = result, shard.score(*result)
            left -= shard.images
            bar.update(shard.images)
            _show(bar, tables, result[1] / shard.images * left / workers)
    leaks, seconds = zip(*(found[shard.number] for shard in shards), strict=True)
    table = pd.concat([tables[shard.number] for shard in shards], ignore_index=True)
    true = [client.data[used] for client, used in zip(clients, drawn.flatten(1), strict=True)]
    return Harvest(merge(leaks), _together(true), table, sum(seconds), resumed, redone)


def now(payload: Payload) -> float:
    """Clock in seconds, once the payload's device has done all that it was asked for."""
    if payload.device.type == "cuda":
        torch.cuda.synchronize(payload.device)
    return perf_counter()


@dataclass(frozen=True, eq=False)
class _Shard:
    """Clients that are attacked together, and all that their result depends on."""

    number: int
    begin: int  # images in the shards before
    clients: Sequence[Client]
    batches: Draw
    attack: Any
    payload: Payload
    protocol: Protocol
    labels: str
    seed: int
    cache: str | Path | None

    @property
    def images(self) -> int:
        return self.batches.positions.numel()

    @property
    def attack_seed(self) -> int:
        digest = hashlib.blake2b(f"{self.seed} {self.number}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 33  # 31 bits, for an attack that multiplies it before it seeds

    def truth(self) -> Truth:
        ids = torch.tensor([client.id for client in self.clients])
        return Truth(*gather(self.clients, self.batches.flat), ids)

    def updates(self) -> Updates:
        return respond(self.clients, self.payload, self.protocol, batches=self.batches)

    def labels_of(self, updates: Updates) -> Tensor:
        """(k, N) as the attacker has them."""
        if self.labels == KNOWN:
            return self.truth().labels.to(self.payload.device)
        return restore_labels(self.payload, updates, self.labels).labels()

    @cached_property
    def entry(self) -> store.Entry:
        """Where its result is kept."""
        payload = self.payload
        about = {"shard": self.number, "seed": self.seed, "labels": self.labels, "device": payload.device.type}
        about |= {"attack": asdict(self.attack.settings), "protocol": repr(self.protocol), "model": str(payload.model)}
        tensors = payload.parameters | payload.buffers | store.tensors_of(self.truth())
        makers = [type(self.attack), type(payload.model), type(self.protocol), respond, restore_labels]
        return store.entry("inversion", about, tensors.items(), makers, self.cache)

    def estimate(self) -> float:
        """Seconds that an image will take: the difference of two short runs is free of what is done only once."""
        updates = self.updates()
        labels = self.labels_of(updates)

        def seconds(iterations: int) -> float:
            short, begin = type(self.attack)(replace(self.attack.settings, iterations=iterations)), now(self.payload)
            short.reconstruct(self.payload, updates, labels, seed=self.attack_seed)
            return now(self.payload) - begin

        seconds(1)  # warms up
        four, one = seconds(4), seconds(1)
        each = (four - one) / 3 if four > one else four / 4  # too fast to time: the upper limit
        return (max(0.0, one - each) + each * self.attack.settings.iterations) / self.images

    def run(self) -> tuple[Leak, float]:
        """Attack it: the leak, and the attacker's seconds for labels and images."""
        updates = self.updates()
        begin = now(self.payload)
        leak = self.attack.reconstruct(self.payload, updates, self.labels_of(updates), seed=self.attack_seed)
        seconds = now(self.payload) - begin
        return replace(leak, meta=plain(leak.meta)), seconds  # as it comes back

    def keep(self, leak: Leak, seconds: float) -> None:
        """Keep what `run` gave."""
        self.entry.save({"meta": leak.meta, "seconds": seconds}, leak=store.tensors_of(leak))

    def score(self, leak: Leak, seconds: float) -> pd.DataFrame:
        """`quality` with positions counted over all shards, each of which has as many reconstructions as images."""
        table = quality(leak, self.truth())
        table["position"] += self.begin
        found = table["reconstruction"]
        table["reconstruction"] = found.where(found < 0, found + self.begin)
        return table.assign(shard=self.number, seconds=seconds / len(table))


def _default_clients_per_shard(payload: Payload) -> int:
    kind = payload.device.type if payload.device.type in UPDATE_BYTES else "cpu"
    size = sum(value.numel() * value.element_size() for value in payload.parameters.values())
    return max(1, min(CLIENTS_PER_SHARD[kind], UPDATE_BYTES[kind] // size))


def _show(bar: tqdm, tables: dict[int, pd.DataFrame], left: float) -> None:
    """Mean PSNR of what is done, and the time left: as estimated before the first shard, then as the last one took."""
    psnr = [f"{pd.concat([table['psnr'] for table in tables.values()]).mean():.1f} dB"] if tables else []
    bar.set_postfix_str(", ".join([*psnr, f"{tqdm.format_interval(left)} left"]))


def _together(parts: Sequence[ImageSet]) -> ImageSet:
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels", "index")}
    return replace(parts[0], **joined)
