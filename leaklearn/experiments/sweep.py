"""Gradient inversion of many clients, hours or days of it: shard by shard, each on disk before the next starts.

A killed sweep goes on where it stopped. Nothing in a shard depends on the shards before it, so that a resumed sweep
gives the very result of an unbroken one on the same machine; a damaged shard is found by its SHA-256 and redone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from leaklearn.experiments.estimate import Attack, duration
from leaklearn.experiments.job import KNOWN, Job, default_clients_per_shard
from leaklearn.experiments.shards import Shards
from leaklearn.federated import Client, Payload
from leaklearn.federated.protocols import Protocol
from leaklearn.leaks import Leak, merge

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Sweep:
    """The outcome of `sweep`.

    Attributes
    ----------
    leak : Leak
        All shards, in order; `meta` holds the sweep's settings and each shard's record.
    quality : DataFrame
        `leaklearn.evaluation.quality` of every attacked image, then ``shard`` and ``seconds`` (an image's share of its
        shard's attack time, so that the column's mean is the seconds per image and its sum `seconds`).
    seconds : float
        The attacker's time: labels and reconstruction, without clients and scoring. Summed over the shards' own
        records, so that it is the whole sweep's even when most of it ran in an earlier process.
    estimated_seconds : float
        What was foreseen for that, each shard's as its process foresaw it before it attacked its first shard.
    resumed : int
        How many finished shards were found on disk.
    redone : list of str
        Shards that were found damaged or made with other settings and attacked again, each with the reason.
    """

    leak: Leak
    quality: pd.DataFrame
    seconds: float
    estimated_seconds: float
    resumed: int
    redone: list[str]

    def __repr__(self) -> str:
        psnr, took = self.quality["psnr"].mean(), duration(self.seconds)
        return f"Sweep({self.leak!r}, mean PSNR {psnr:.1f} dB, {took}, {self.resumed} shards resumed)"


def sweep(
    folder: str | Path,
    attack: Attack,
    payload: Payload,
    clients: Sequence[Client],
    protocol: Protocol,
    *,
    seed: int,
    labels: str = KNOWN,
    clients_per_shard: int | None = None,
    at_once: int | None = None,
    progress: bool = True,
) -> Sweep:
    """Attack the updates of many clients by gradient inversion, resuming what the folder holds already.

    Parameters
    ----------
    folder
        Where the shards are kept; of one sweep only. It can be deleted when the result is no longer needed.
    attack
        The attack, with its settings.
    payload
        The model that the clients were sent.
    clients
        Whom to attack; only the updates of one shard are ever in memory.
    protocol
        `FedSGD` or `FedAvg`.
    seed
        Decides the mini-batches (`draw_batches(clients, protocol, seed)`, whatever the shards) and, together with a
        shard's number, the attack's own randomness.
    labels
        ``"known"``: the attacker is given the labels; ``"attack"``: it finds them as its own settings say; else the
        method of `restore_labels` that it restores them with.
    clients_per_shard
        Clients attacked together and saved together; None chooses by device and size of the model. It is one of the
        settings: another number is another sweep.
    at_once
        Clients that the attack computes in one program; None: as many as the free memory allows. That changes rounding:
        give a number where a sweep must come out bit by bit the same with less memory free. One of the settings.
    progress
        Show a progress bar.

    Returns
    -------
    Sweep

    Raises
    ------
    ValueError
        Before anything is computed: for clients that share an id or have too few images for a batch, an unknown way to
        labels, a number out of range, or a folder that holds a sweep with other settings.
    """
    per_shard = default_clients_per_shard(payload) if clients_per_shard is None else clients_per_shard
    job = Job(attack, payload, clients, protocol, seed, labels, per_shard, at_once)
    shards = Shards(Path(folder), job.settings(), job.count)
    shards.open()
    leaks, redone = _finished(shards, job)
    tables = {number: job.score(number, leak) for number, leak in leaks.items()}
    resumed, todo = len(leaks), [number for number in range(job.count) if number not in leaks]
    log.info("%s: %d of %d shards are there, %d of the others to be redone", folder, resumed, job.count, len(redone))

    images = protocol.images_per_client
    left = sum(len(job.ids(number)) for number in todo)
    layout = "{desc}: {n}/{total} images |{bar}| {elapsed}{postfix}"
    done = images * (len(clients) - left)
    bar = tqdm(total=images * len(clients), initial=done, bar_format=layout, desc="inversion", disable=not progress)
    with bar:
        foreseen = job.estimate(todo[0]) if todo else 0.0
        each = foreseen
        if todo:
            log.info("estimate: %s for %d clients, %.3g s each", duration(each * left), left, each)
        for number in todo:
            _show(bar, tables, each * left)
            leak, seconds = job.run(number)
            size = len(job.ids(number))
            leaks[number] = shards.save(number, leak, seconds=seconds, estimated_seconds=foreseen * size)
            tables[number] = job.score(number, leaks[number])
            left -= size
            each = seconds / size
            psnr = tables[number]["psnr"].mean()
            log.info("shard %d of %d: %.1f dB, %s", number, job.count, psnr, duration(seconds))
            bar.update(images * size)
        _show(bar, tables, 0.0)
    return _whole(shards, leaks, tables, resumed, redone)


def _finished(shards: Shards, job: Job) -> tuple[dict[int, Leak], list[str]]:
    """The shards that are there and right, and for those that are there and wrong, why."""
    leaks, redone = {}, []
    for number in range(job.count):
        try:
            leak = shards.load(number, job.ids(number))
        except ValueError as error:
            redone.append(f"shard {number}: {error}")
            log.warning("shard %d of %d is attacked again: %s", number, job.count, error)
            continue
        if leak is not None:
            leaks[number] = leak
    return leaks, redone


def _whole(
    shards: Shards, leaks: dict[int, Leak], tables: dict[int, pd.DataFrame], resumed: int, redone: list[str]
) -> Sweep:
    parts, rows, before = [], [], 0
    for number in sorted(leaks):
        part, table = leaks[number], tables[number]
        found = table["reconstruction"]
        rows.append(table.assign(reconstruction=found.where(found < 0, found + before)))
        parts.append(part)
        before += len(part)
    leak = merge(parts)
    records = [part.meta["sweep"] for part in parts]
    return Sweep(
        leak=replace(leak, meta={"settings": shards.settings, **leak.meta}),
        quality=pd.concat(rows, ignore_index=True),
        seconds=sum(record["seconds"] for record in records),
        estimated_seconds=sum(record["estimated_seconds"] for record in records),
        resumed=resumed,
        redone=redone,
    )


def _show(bar: tqdm, tables: dict[int, pd.DataFrame], left: float) -> None:
    """Mean PSNR of what is done, and the time left: as estimated before the first shard, then as the last one took."""
    psnr = [f"{pd.concat([table['psnr'] for table in tables.values()]).mean():.1f} dB"] if tables else []
    bar.set_postfix_str(", ".join([*psnr, f"{duration(left)} left"]))
