"""Clients: they hold images, and answer a payload with an update."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leaklearn.data.images import ImageSet
from leaklearn.data.partition import partition
from leaklearn.federated.defences import Defence
from leaklearn.federated.exchange import Payload, SecureAggregation, Updates
from leaklearn.federated.local import clients_at_once
from leaklearn.federated.protocols import Draw, Protocol, draw


@dataclass(frozen=True, eq=False)
class Client:
    """One participant.

    Attributes
    ----------
    id : int
        Its number in the federation.
    data : ImageSet
        Its images and labels, which never leave it: only updates do.
    """

    id: int
    data: ImageSet

    def respond(
        self, payload: Payload, protocol: Protocol, seed: int = 0, *, defence: Defence | None = None
    ) -> Updates:
        """This client's update alone; see `respond` for many clients at once."""
        return respond([self], payload, protocol, seed, defence=defence)

    def __repr__(self) -> str:
        return f"Client({self.id}: {len(self.data)} images)"


def make_clients(
    train: ImageSet,
    clients: int,
    *,
    alpha: float | None = None,
    shards_per_client: int | None = None,
    seed: int = 0,
) -> list[Client]:
    """Share a training set among clients: `leaklearn.data.partition`, as `Client` objects numbered from 0."""
    parts = partition(train, clients, alpha=alpha, shards_per_client=shards_per_client, seed=seed)
    return [Client(i, part) for i, part in enumerate(parts)]


def respond(
    clients: Sequence[Client],
    payload: Payload,
    protocol: Protocol,
    seed: int = 0,
    *,
    secure: bool = False,
    at_once: int | None = None,
    only: Collection[str] | None = None,
    batches: Draw | None = None,
    defence: Defence | None = None,
) -> Updates:
    """Updates of all clients, computed in batched programs.

    Parameters
    ----------
    clients
        Who answers.
    payload
        What the server sent; the computation runs on its device and in its precision.
    protocol
        `FedSGD` or `FedAvg`.
    seed
        Decides the mini-batches (`draw_batches` with the same seed tells which they were).
    secure
        Return only the sum over the clients (secure aggregation).
    at_once
        Clients in one program; None chooses by device and batch size. It changes speed and memory, not the draw.
    only
        Names of the parameters whose updates are kept, for a caller that looks at no others; None keeps all.
    batches
        The mini-batches where they are drawn already, as for a few of many clients; `seed` is then not used for them.
    defence
        What every client does to its update before it sends it; its random numbers come from `seed` and the client's
        id. None: nothing.

    Returns
    -------
    Updates
        One row a client, or with `secure` their sum.

    Raises
    ------
    ValueError
        If a batch is larger than a client's data, no client is given, `batches` are not those of as many clients, or
        the defence does not fit model or protocol.
    FloatingPointError
        If an update is not finite.
    """
    options = {"at_once": at_once, "only": only, "batches": batches, "defence": defence}
    chunks = respond_in_chunks(clients, payload, protocol, seed, **options)
    if secure:
        aggregation = SecureAggregation(payload, len(clients))
        for chunk in chunks:
            aggregation.add(chunk)
        total = aggregation.result()
        return total if defence is None else defence.summed(payload, total, seed)
    parts = list(chunks)
    first = parts[0]
    if len(parts) == 1:
        return first
    return Updates(
        first.kind,
        {name: torch.cat([part.tensors[name] for part in parts]) for name in first.tensors},
        {name: torch.cat([part.buffers[name] for part in parts]) for name in first.buffers},
        torch.cat([part.clients for part in parts]),
        protocol,
    )


def respond_in_chunks(
    clients: Sequence[Client],
    payload: Payload,
    protocol: Protocol,
    seed: int = 0,
    *,
    at_once: int | None = None,
    only: Collection[str] | None = None,
    batches: Draw | None = None,
    defence: Defence | None = None,
) -> Iterator[Updates]:
    """`respond`, but chunk by chunk, so that the updates of a thousand clients need never be in memory together."""
    positions = (draw_batches(clients, protocol, seed) if batches is None else batches).positions
    if len(positions) != len(clients):
        raise ValueError(f"mini-batches of {len(positions)} clients were given for {len(clients)} clients")
    device = payload.device
    at_once = clients_at_once(payload, protocol) if at_once is None else at_once
    defence = Defence() if defence is None else defence
    for start in range(0, len(clients), at_once):
        group = clients[start : start + at_once]
        images, labels = gather(group, positions[start : start + at_once])
        images = images.to(device, payload.dtype) / 255
        own_seeds = [client_seed(seed, client.id) for client in group]
        tensors, buffers = defence.answer(payload, protocol, images, labels.to(device), own_seeds)
        if only is not None:
            tensors, buffers = {name: tensors[name] for name in only}, {}
        yield Updates(protocol.kind, tensors, buffers, torch.tensor([client.id for client in group]), protocol)


def client_seed(seed: int, client: int) -> int:
    """Seed of a client's own random numbers in a round with this seed: a secret of the client, told to no server."""
    digest = hashlib.blake2b(f"{seed} {client}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 24  # 40 bits, for a defence that multiplies it


def draw_batches(clients: Sequence[Client], protocol: Protocol, seed: int = 0) -> Draw:
    """The mini-batches that `respond` uses with this seed. Truth: for simulation and scoring only."""
    return draw([len(client.data) for client in clients], protocol, seed)


def gather(clients: Sequence[Client], positions: Tensor) -> tuple[Tensor, Tensor]:
    """Images and labels at (K, ...) positions within each client's data.

    Returns
    -------
    tuple of Tensor
        Images (K, ..., C, H, W) uint8 and labels (K, ...) int64. Truth: for simulation and scoring only.
    """
    chosen = [client.data[row.flatten()] for client, row in zip(clients, positions, strict=True)]
    shape = chosen[0].images.shape[1:]
    images = torch.stack([part.images for part in chosen]).view(*positions.shape, *shape)
    labels = torch.stack([part.labels for part in chosen]).view(positions.shape)
    return images, labels
